package cli

import "os"

// signalName is what to send to the engine for a signal of ours.
func signalName(sig os.Signal) (string, bool) {
	if sig == os.Interrupt {
		return "INT", true
	}
	return "TERM", true
}
