package steps

import (
	"errors"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"corten.dev/corten/internal/build/step"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/linux/pty"
)

// stdio joins a process's first descriptors, or its terminal, to readers and writers of ours.
type stdio struct {
	child   [3]*os.File // for the process
	console *os.File    // likewise, with a terminal
	ours    [3]*os.File // the other ends of pipes; nil: the null device
	socket  *os.File    // over which the terminal comes

	mu     sync.Mutex
	master *os.File
	copies sync.WaitGroup // of output
}

// open makes what the process gets.
func (s *stdio) open(e *Executor, c *step.Command) (err error) {
	s.child = [3]*os.File{e.null, e.null, e.null}
	if c.Tty {
		s.socket, s.console, err = pty.Socket()
		return err
	}
	for i, wanted := range [3]bool{c.Stdin != nil, c.Stdout != nil, c.Stderr != nil} {
		if !wanted {
			continue
		}
		var fds [2]int // 0 is to read
		if err := syscall.Pipe2(fds[:], syscall.O_CLOEXEC); err != nil {
			return errors.Join(err, s.abandon())
		}
		mine, theirs := 0, 1
		if i == 0 {
			mine, theirs = 1, 0
		}
		// Only our end does not block: the other is a program's, which knows nothing of such descriptors.
		err := syscall.SetNonblock(fds[mine], true)
		s.ours[i], s.child[i] = os.NewFile(uintptr(fds[mine]), "pipe"), os.NewFile(uintptr(fds[theirs]), "pipe")
		if err != nil {
			return errors.Join(err, s.abandon())
		}
	}
	return nil
}

// release closes the process's ends, which it has for itself now.
func (s *stdio) release() (err error) {
	for i, f := range s.child {
		if s.ours[i] != nil && f != nil {
			err = errors.Join(err, f.Close())
		}
		s.child[i] = nil
	}
	if s.console != nil {
		err = errors.Join(err, s.console.Close())
		s.console = nil
	}
	return err
}

// abandon closes everything of a process that was not started.
func (s *stdio) abandon() error {
	err := s.release()
	for i, f := range s.ours {
		if f != nil {
			err = errors.Join(err, f.Close())
			s.ours[i] = nil
		}
	}
	if s.socket != nil {
		err = errors.Join(err, s.socket.Close())
		s.socket = nil
	}
	return err
}

// start begins to copy.
func (s *stdio) start(c *step.Command) error {
	err := s.release()
	if c.Tty {
		master, terr := pty.Receive(s.socket)
		err = errors.Join(err, terr, s.socket.Close())
		s.socket = nil
		if terr != nil {
			return err
		}
		err = errors.Join(err, pty.Resize(master, c.Rows, c.Cols))
		s.mu.Lock()
		s.master = master
		s.mu.Unlock()
		if c.Stdin != nil {
			go func() { _, _ = io.Copy(master, c.Stdin) }() // ends with the terminal, or what it reads
		}
		if c.Stdout != nil {
			s.copies.Go(func() { drain(c.Stdout, master) })
		} else {
			s.copies.Go(func() { drain(io.Discard, master) })
		}
		return err
	}
	if in := s.ours[0]; in != nil {
		go func() {
			_, _ = io.Copy(in, c.Stdin) // a program that closes its input is not interested
			_ = in.Close()
		}()
	}
	for i, w := range [3]io.Writer{nil, c.Stdout, c.Stderr} {
		if r := s.ours[i]; i > 0 && r != nil {
			s.copies.Go(func() { drain(w, r) })
		}
	}
	return err
}

// drain copies until the end, and goes on reading when nobody takes it any more: the program must not stop for that.
func drain(w io.Writer, r *os.File) {
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Read(buf)
		if n > 0 && w != nil {
			if _, werr := w.Write(buf[:n]); werr != nil {
				w = nil
			}
		}
		if err != nil { // the end; a terminal's is EIO
			return
		}
	}
}

// patience is how long output may still come after the last process: whoever got a descriptor out of the step could hold it for ever.
const patience = 5 * time.Second

// finish waits for the rest of the output and closes our ends.
func (s *stdio) finish() (err error) {
	done := make(chan struct{})
	go func() {
		s.copies.Wait()
		close(done)
	}()
	s.mu.Lock()
	master := s.master
	s.master = nil
	s.mu.Unlock()
	files := append([]*os.File{master}, s.ours[:]...)
	select {
	case <-done:
	case <-time.After(patience):
	}
	for _, f := range files {
		if f == nil {
			continue
		}
		if cerr := f.Close(); cerr != nil && !errors.Is(cerr, os.ErrClosed) { // input closes itself
			err = errors.Join(err, cerr)
		}
	}
	<-done
	return err
}

func (s *stdio) resize(rows, cols uint16) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.master == nil {
		return errs.New(errs.Conflict, "the process has no terminal")
	}
	return pty.Resize(s.master, rows, cols)
}
