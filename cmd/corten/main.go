// Command corten is the command line of Corten: docker's verbs, for people and scripts.
package main

import (
	"context"
	"os"
	"runtime"

	"corten.dev/corten/internal/cli"
)

func main() {
	// A command waits more than it computes. On one processor its goroutines hand over to each other without waking threads, which is a tenth of a short command.
	runtime.GOMAXPROCS(1)
	os.Exit(cli.Main(context.Background(), os.Args[1:], cli.Files()))
}
