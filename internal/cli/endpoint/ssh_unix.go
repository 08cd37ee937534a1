//go:build unix

package endpoint

import (
	"os/exec"
	"syscall"
)

// apart gives the program a session of its own, as docker's client does: Ctrl-C is for the container then, and does not end the connection by which it has to travel. The program cannot ask for a
// password on the terminal; keys, an agent or SSH_ASKPASS serve it.
func apart(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} }
