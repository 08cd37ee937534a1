// Command corten is the command line of Corten: docker's verbs, for people and scripts.
package main

import (
	"context"
	"os"

	"corten.dev/corten/internal/cli"
)

func main() { os.Exit(cli.Main(context.Background(), os.Args[1:], cli.Files())) }
