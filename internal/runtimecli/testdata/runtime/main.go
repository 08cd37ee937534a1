// Command runtime is the runtime's command line alone, for tests.
package main

import (
	"context"
	"os"

	"corten.dev/corten/internal/runtimecli"
)

func main() {
	os.Exit(runtimecli.Main(context.Background(), os.Args[1:], runtimecli.IO{In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Version: "test"}))
}
