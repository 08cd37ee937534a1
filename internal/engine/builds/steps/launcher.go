package steps

import (
	"context"
	"os"
	goruntime "runtime"

	"corten.dev/corten/internal/runtime"
)

// launcher clones first processes on a thread that lives as long as it does: the kernel kills them when that thread ends.
type launcher struct {
	calls chan call
	done  chan struct{}
}

type call struct {
	ctx     context.Context
	with    runtime.Launcher
	program []byte
	files   []*os.File
	answer  chan<- answer
}

type answer struct {
	pid   int
	pidfd *os.File
	err   error
}

func newLauncher() *launcher {
	l := &launcher{calls: make(chan call), done: make(chan struct{})}
	go l.serve()
	return l
}

func (l *launcher) serve() {
	goruntime.LockOSThread() // and never unlock: the thread ends with the goroutine
	defer close(l.done)
	for c := range l.calls {
		pid, pidfd, err := c.with.Launch(c.ctx, c.program, c.files)
		c.answer <- answer{pid, pidfd, err}
	}
}

// with has the clone made on the thread.
func (l *launcher) with(stdio [3]*os.File, console *os.File) runtime.Launcher {
	direct := runtime.WithStdio(stdio, console)
	return runtime.LauncherFunc(func(ctx context.Context, program []byte, files []*os.File) (int, *os.File, error) {
		back := make(chan answer, 1)
		l.calls <- call{ctx, direct, program, files, back}
		a := <-back
		return a.pid, a.pidfd, a.err
	})
}

func (l *launcher) close() {
	close(l.calls)
	<-l.done
}
