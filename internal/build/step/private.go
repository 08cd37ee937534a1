package step

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/linux/mount"
	"corten.dev/corten/internal/task"
)

// maxSecret is what one may have, as in BuildKit.
const maxSecret = 500 << 10

// memory is a file system in memory with no name on the host, and never swapped out where the kernel can promise that (6.4).
func (set *mounted) memory() (*os.File, error) {
	fs, err := mount.FS("tmpfs", "tmpfs", mount.Options{Data: []string{"mode=0700", "size=1m", "noswap"}})
	if err != nil {
		fs, err = mount.FS("tmpfs", "tmpfs", mount.Options{Data: []string{"mode=0700", "size=1m"}})
	}
	if err == nil {
		set.unmount = append(set.unmount, func(context.Context) error { return fs.Close() })
	}
	return fs, err
}

// secret mounts a secret as a file.
func (set *mounted) secret(ctx context.Context, env build.Env, p *part) error {
	opt := p.m.SecretOpt
	value, err := secret(ctx, env, opt.ID)
	if opt.Optional && errors.Is(err, errs.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if len(value) > maxSecret {
		return errs.New(errs.Invalid, "secret %s: %d bytes are more than %d", opt.ID, len(value), maxSecret)
	}
	fs, err := set.memory()
	if err != nil {
		return err
	}
	fd, err := unix.Openat(int(fs.Fd()), "secret", unix.O_CREAT|unix.O_EXCL|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("secret %s: %w", opt.ID, err)
	}
	f := os.NewFile(uintptr(fd), "secret")
	defer f.Close()
	if _, err := f.Write(value); err != nil {
		return fmt.Errorf("secret %s: %w", opt.ID, err)
	}
	if err := own(f, opt.Uid, opt.Gid, opt.Mode); err != nil {
		return fmt.Errorf("secret %s: %w", opt.ID, err)
	}
	p.opts = []string{"nosuid", "nodev"}
	if opt.Mode&0o111 == 0 {
		p.opts = append(p.opts, "noexec")
	}
	return set.clone(p, fs, f)
}

// own gives a file its owner and mode.
func own(f *os.File, uid, gid, mode uint32) error {
	name := fmt.Sprintf("/proc/self/fd/%d", f.Fd())
	if err := unix.Chown(name, int(uid), int(gid)); err != nil {
		return err
	}
	return unix.Chmod(name, mode&0o777)
}

// ssh mounts a socket; each connection to it is one to the asker's agent.
func (set *mounted) ssh(ctx context.Context, env build.Env, p *part) error {
	opt := p.m.SSHOpt
	id := cmp.Or(opt.ID, "default") // a Dockerfile's mount without an id has none here either
	session, err := session(ctx, env)
	if err != nil {
		return err
	}
	err = errs.New(errs.NotFound, "no SSH key %q forwarded from the client", id)
	if session != nil && session.SSH != nil {
		err = session.SSH.Offers(ctx, id)
	}
	if err != nil {
		if opt.Optional {
			return nil
		}
		return err
	}
	fs, err := set.memory()
	if err != nil {
		return err
	}
	listener, err := net.Listen("unix", "/proc/self/fd/"+strconv.Itoa(int(fs.Fd()))+"/agent")
	if err != nil {
		return fmt.Errorf("socket of agent %s: %w", id, err)
	}
	listener.(*net.UnixListener).SetUnlinkOnClose(false) // its name would be that of another descriptor by then
	fwd := &forward{ssh: session.SSH, id: id, log: set.steps.log, listener: listener, conns: map[io.Closer]bool{}}
	fwd.ctx, fwd.cancel = context.WithCancel(context.WithoutCancel(ctx))
	fwd.work.Go(fwd.accept)
	set.unmount = append(set.unmount, func(context.Context) error { return fwd.close() })
	fd, err := unix.Openat(int(fs.Fd()), "agent", unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	sock := os.NewFile(uintptr(fd), "agent")
	defer sock.Close()
	if err := own(sock, opt.Uid, opt.Gid, opt.Mode); err != nil {
		return fmt.Errorf("socket of agent %s: %w", id, err)
	}
	return set.clone(p, fs, sock)
}

// forward joins connections of a step to the agent.
type forward struct {
	ssh      build.SSH
	id       string
	log      *slog.Logger
	listener net.Listener
	ctx      context.Context // of the dials; ends with close
	cancel   context.CancelFunc
	work     sync.WaitGroup

	mu     sync.Mutex
	conns  map[io.Closer]bool
	closed bool
}

// maxForwards bounds what a step can have open at a time.
const maxForwards = 64

func (f *forward) accept() {
	for {
		conn, err := f.listener.Accept()
		if err != nil {
			return
		}
		if !f.add(conn) {
			conn.Close()
			continue
		}
		f.work.Go(func() { f.join(conn) })
	}
}

// add counts a connection; false when there are too many, or it is over.
func (f *forward) add(c io.Closer) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed || len(f.conns) >= 2*maxForwards {
		return false
	}
	f.conns[c] = true
	return true
}

func (f *forward) drop(c io.Closer) {
	f.mu.Lock()
	delete(f.conns, c)
	f.mu.Unlock()
	_ = c.Close() // both ends are closed from both sides; the second one is told so
}

func (f *forward) join(conn net.Conn) {
	defer f.drop(conn)
	defer task.Contain(f.log, "agent of a step", nil)
	agent, err := f.ssh.Dial(f.ctx, f.id)
	if err != nil {
		return // the program sees a connection that ends
	}
	if !f.add(agent) {
		_ = agent.Close()
		return
	}
	defer f.drop(agent)
	done := make(chan struct{}, 2)
	copying := func(to io.Writer, from io.Reader) func() {
		return func() {
			defer func() { done <- struct{}{} }()
			defer task.Contain(f.log, "agent of a step", nil)
			_, _ = io.Copy(to, from)
		}
	}
	f.work.Go(copying(agent, conn))
	f.work.Go(copying(conn, agent))
	<-done
}

func (f *forward) close() error {
	f.cancel()
	err := f.listener.Close()
	f.mu.Lock()
	f.closed = true
	for c := range f.conns {
		_ = c.Close()
	}
	f.mu.Unlock()
	f.work.Wait()
	return err
}
