//go:build linux || darwin

package cli

import (
	"os"
	"strconv"
	"syscall"
)

// signalName is what to send to the engine for a signal of ours; false for those that concern us alone.
func signalName(sig os.Signal) (string, bool) {
	n, ok := sig.(syscall.Signal)
	if !ok {
		return "", false
	}
	switch n {
	case syscall.SIGCHLD, syscall.SIGPIPE, syscall.SIGURG, syscall.SIGWINCH, syscall.SIGTTIN, syscall.SIGTTOU, syscall.SIGTSTP, syscall.SIGCONT:
		return "", false
	case syscall.SIGINT:
		return "INT", true
	case syscall.SIGTERM:
		return "TERM", true
	case syscall.SIGHUP:
		return "HUP", true
	case syscall.SIGQUIT:
		return "QUIT", true
	case syscall.SIGUSR1:
		return "USR1", true
	case syscall.SIGUSR2:
		return "USR2", true
	}
	return strconv.Itoa(int(n)), true
}
