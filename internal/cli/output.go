package cli

import (
	"errors"
	"io"
	"os"
	"sync"
	"syscall"
)

// output is our standard output. It remembers that it could not be written to: verbs print as they go, and one whose answer was lost on a full disk has not succeeded.
type output struct {
	io.Writer
	mu  sync.Mutex // guards err
	err error      // the first one
}

func (o *output) Write(p []byte) (int, error) {
	n, err := o.Writer.Write(p)
	if err != nil {
		o.mu.Lock()
		defer o.mu.Unlock()
		if o.err == nil {
			o.err = err
		}
	}
	return n, err
}

// SyscallConn is that of the file below, for what the kernel can do with it.
func (o *output) SyscallConn() (syscall.RawConn, error) {
	if f, ok := o.Writer.(syscall.Conn); ok {
		return f.SyscallConn()
	}
	return nil, errors.ErrUnsupported
}

// lost gives the first error.
func (o *output) lost() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.err
}

// colourful tells whether a terminal may be written to in colours (no-color.org).
func colourful() bool { return os.Getenv("NO_COLOR") == "" }
