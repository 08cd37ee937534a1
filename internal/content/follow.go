package content

import (
	"context"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/errs"
)

// errAgain is what followers read when the writer began again.
var errAgain = errs.New(errs.Unavailable, "the download began again from its first byte")

// Follow reads the blob from its first byte while it is still being written: what is on disk already at once, the rest as it comes. The end is
// io.EOF when the writer said so (Finish, or Commit once the bytes are verified), else the writer's error (Fail), or an error of kind Unavailable when the writer
// closed, aborted or restarted. The reader outlives the ingest and the blob's name.
func (in *Ingest) Follow(ctx context.Context) io.ReadCloser {
	fl := &follower{in: in, ctx: ctx}
	fd := -1
	conn, err := in.f.SyscallConn()
	if err == nil {
		// Within Control, because the writer may close the file at this moment.
		cerr := conn.Control(func(own uintptr) { fd, err = unix.FcntlInt(own, unix.F_DUPFD_CLOEXEC, 3) })
		if cerr != nil {
			err = errGivenUp
		}
	}
	if err == nil {
		fl.f = os.NewFile(uintptr(fd), in.f.Name())
	} else if path := in.named(); path != "" {
		fl.f, err = os.Open(path) // a small blob was whole before anybody could follow it
	}
	if err != nil {
		fl.err = fmt.Errorf("follow a download: %w", err)
		return fl
	}
	in.mu.Lock()
	fl.round = in.round
	in.mu.Unlock()
	fl.unhook = context.AfterFunc(ctx, func() {
		in.mu.Lock()
		defer in.mu.Unlock()
		in.grown.Broadcast()
	})
	return fl
}

// named is the blob's path once it has its name.
func (in *Ingest) named() string {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.blob
}

type follower struct {
	in     *Ingest
	ctx    context.Context
	f      *os.File
	at     int64
	round  int
	unhook func() bool
	err    error // why it cannot read at all
	closed bool  // guarded by in.mu
}

func (fl *follower) Read(p []byte) (int, error) {
	if fl.err != nil {
		return 0, fl.err
	}
	n, err := fl.wait()
	if n == 0 || len(p) == 0 {
		return 0, err
	}
	got, err := fl.f.ReadAt(p[:min(n, int64(len(p)))], fl.at)
	fl.at += int64(got)
	if err == io.EOF && got > 0 {
		err = nil
	} else if err == io.EOF {
		err = io.ErrUnexpectedEOF // the file is shorter than what was written: somebody cut it
	}
	return got, err
}

// wait returns how many bytes are there to read, or why there will be none.
func (fl *follower) wait() (int64, error) {
	in := fl.in
	in.mu.Lock()
	defer in.mu.Unlock()
	for {
		switch {
		case fl.closed:
			return 0, os.ErrClosed
		case fl.ctx.Err() != nil:
			return 0, context.Cause(fl.ctx)
		case fl.round != in.round:
			return 0, errAgain
		case in.size > fl.at:
			return in.size - fl.at, nil
		case in.end != nil:
			return 0, in.end
		}
		in.grown.Wait()
	}
}

// Close ends a Read that waits. Safe to call twice.
func (fl *follower) Close() error {
	if fl.f == nil {
		return nil
	}
	fl.in.mu.Lock()
	again := fl.closed
	fl.closed = true
	fl.in.grown.Broadcast()
	fl.in.mu.Unlock()
	if again {
		return nil
	}
	fl.unhook()
	return fl.f.Close()
}
