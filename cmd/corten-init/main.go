// Command corten-init is the first process of containers made with --init: it starts the container's program, hands signals on to it, reaps what others leave behind,
// and ends with the program's exit code.
//
// It links nothing but the runtime and system calls, because every such container has one.
package main

import (
	"os"
	"os/signal"
	"syscall"
)

func main() {
	args := os.Args[1:]
	if len(args) > 0 && args[0] == "--" {
		args = args[1:]
	}
	if len(args) == 0 {
		fail("no program given", 125)
	}
	path, code := find(args[0])
	if path == "" {
		fail("exec: \""+args[0]+"\": executable file not found in $PATH", code)
	}
	signals := make(chan os.Signal, 64)
	signal.Notify(signals)
	pid, err := syscall.ForkExec(path, args, &syscall.ProcAttr{
		Env: os.Environ(), Files: []uintptr{0, 1, 2}, Sys: &syscall.SysProcAttr{Setpgid: true, Foreground: terminal(), Ctty: 0},
	})
	if err != nil {
		if err == syscall.ENOENT {
			fail("exec "+args[0]+": "+err.Error(), 127)
		}
		fail("exec "+args[0]+": "+err.Error(), 126)
	}
	for sig := range signals {
		switch n := sig.(syscall.Signal); n {
		case syscall.SIGCHLD:
			reap(pid)
		case syscall.SIGURG, syscall.SIGTTIN, syscall.SIGTTOU, syscall.SIGPIPE: // ours (SIGURG: the Go runtime's), not the program's
		default:
			_ = syscall.Kill(pid, n) // gone is known by SIGCHLD
		}
	}
}

// reap collects every process that has ended, and ends with the program.
func reap(pid int) {
	for {
		var st syscall.WaitStatus
		got, err := syscall.Wait4(-1, &st, syscall.WNOHANG, nil)
		if err == syscall.EINTR {
			continue
		}
		if err != nil || got <= 0 {
			return
		}
		if got != pid {
			continue
		}
		if st.Signaled() {
			os.Exit(128 + int(st.Signal()))
		}
		if st.Exited() {
			os.Exit(st.ExitStatus())
		}
	}
}

// terminal tells whether stdin is the terminal of this session, so that the program can be put in its foreground.
func terminal() bool {
	var group int32
	_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, 0, syscall.TIOCGPGRP, uintptrOf(&group))
	return errno == 0
}

// find looks a program up as a shell would.
func find(name string) (path string, code int) {
	usable := func(p string) bool {
		var st syscall.Stat_t
		return syscall.Stat(p, &st) == nil && st.Mode&syscall.S_IFMT == syscall.S_IFREG && st.Mode&0o111 != 0
	}
	for i := range len(name) {
		if name[i] == '/' {
			return name, 0
		}
	}
	dirs := os.Getenv("PATH")
	for start := 0; start <= len(dirs); {
		end := start
		for end < len(dirs) && dirs[end] != ':' {
			end++
		}
		dir := dirs[start:end]
		if dir == "" {
			dir = "."
		}
		if p := dir + "/" + name; usable(p) {
			return p, 0
		}
		start = end + 1
	}
	return "", 127
}

func fail(text string, code int) {
	os.Stderr.WriteString("corten-init: " + text + "\n")
	os.Exit(code)
}
