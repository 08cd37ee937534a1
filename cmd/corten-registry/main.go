// Command corten-registry is the registry: see package registry/serve. The engine's binary carries it inside itself, and becomes it for `cortend registry COMMAND`.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/linux/systemd"
	"corten.dev/corten/internal/registry/serve"
	"corten.dev/corten/internal/version"
)

func main() {
	if len(os.Args) < 2 || os.Args[1] != "registry" {
		fmt.Fprintln(os.Stderr, "corten-registry is started by cortend registry, not by hand")
		os.Exit(2)
	}
	// Executed from a descriptor, it would be called by its number.
	if err := os.WriteFile("/proc/self/comm", []byte("corten-registry"), 0); err != nil {
		fmt.Fprintln(os.Stderr, "cortend registry: the process goes without its name:", err)
	}
	os.Exit(run(os.Args[2:]))
}

// run takes signals from the beginning: one that comes while the registry starts ends it in order as well.
func run(args []string) int {
	signals := make(chan os.Signal, 2)
	if len(args) > 0 && args[0] == "serve" {
		signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	}
	return serve.Main(context.Background(), args, serve.IO{
		In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Version: version.Version, Signals: signals,
		Ready: func(string) {
			if err := systemd.Notify("READY=1"); err != nil {
				fmt.Fprintln(os.Stderr, "cortend registry: the service manager does not know that the registry serves:", err)
			}
		},
	})
}
