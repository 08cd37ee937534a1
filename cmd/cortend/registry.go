package main

import (
	"fmt"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"

	registryserve "corten.dev/corten/internal/registry/serve"
	"corten.dev/corten/internal/version"
)

// registry runs `cortend registry …`. Signals are taken from the beginning: one that comes while the registry starts ends it in order as well.
func registry(args []string) int {
	signals := make(chan os.Signal, 2)
	if len(args) > 0 && args[0] == "serve" {
		signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	}
	return registryserve.Main(background(), args, registryserve.IO{
		In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Version: version.Version, Signals: signals,
		Ready: func(string) {
			if err := notify("READY=1"); err != nil {
				fmt.Fprintln(os.Stderr, "cortend registry: the service manager does not know that the registry serves:", err)
			}
		},
	})
}
