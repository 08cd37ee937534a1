// The processors that it may use are set below: the runtime need not read the host's mounts and cgroups for them, which takes 0.1 ms.
//
//go:debug containermaxprocs=0
//go:debug updatemaxprocs=0

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
