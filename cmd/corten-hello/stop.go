package main

import (
	"os"
	"os/signal"
	"syscall"
)

// stop ends the program when it is asked to: as process 1 it would not die of these signals by itself.
func stop() {
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, syscall.SIGTERM, syscall.SIGINT)
	<-asked
	os.Exit(0)
}
