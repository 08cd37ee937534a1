// Command corten-demo runs the main job of Corten end to end with a private engine (make demo).
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"corten.dev/corten/internal/demo"
)

func main() {
	bin := flag.String("bin", "bin", "folder of corten and cortend")
	engine := flag.String("engine-flags", "", "more flags for the engine, separated by spaces")
	flag.Parse()
	abs, err := filepath.Abs(*bin)
	if err == nil {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		d := demo.Demo{Bin: abs, Out: os.Stdout, EngineFlags: strings.Fields(*engine)}
		err = d.Run(ctx)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
	fmt.Println("Everything was stopped, and nothing was left behind.")
}
