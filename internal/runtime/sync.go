package runtime

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/linux/launch"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// The hand-shake in full. Each step in brackets happens only if it is needed; a plain container says nothing and is heard of only by the end of file.
//
//	runtime                                        child
//	                                               writes its oom score, joins cgroups and namespaces, is cloned once more if it must
//	              ◀── 'n' namespaces ready ─────── [new user namespace, or cgroups of systemd's]
//	uid_map, gid_map, systemd's scope
//	              ─── 'g' ───────────────────────▶
//	                                               mounts
//	              ◀── 'h' root mounted ─────────── [hooks prestart, createRuntime, createContainer]
//	hooks         ─── 'g' ───────────────────────▶
//	                                               masks, pivot_root, session, closes everything else
//	              ◀── 'r' ready ────────────────── [gate]
//	create returns                                 accept() on start.sock: from here on the sync socket is the accepted connection
//	start: hooks startContainer
//	              ─── 'g' ───────────────────────▶
//	                                               limits, credentials
//	              ◀── 'l' listener, number ─────── [seccomp notify]
//	pidfd_getfd   ─── 'g' ───────────────────────▶
//	                                               execve
//	              ◀── end of file ──────────────── done, or killed
//	              ◀── 'f' operation, errno ─────── at any time: failed; the child is gone
//
// When the runtime dies, the child's read ends and the child with it; waiting at the gate it stays, as a created container should.
type handshake struct {
	conn    *os.File // our end
	explain func(op int) string
	// on handles the kinds of reports that expect an answer.
	on map[byte]func(value int) error
}

// errDied is the end of a child that said nothing.
var errDied = errs.New(errs.Unavailable, "the process died during its set-up")

// failure is what a child said went wrong.
type failure struct {
	what  string
	errno unix.Errno
}

func (f *failure) Error() string { return f.what + ": " + f.errno.Error() }
func (f *failure) Unwrap() error { return f.errno }

// wait reads reports until the end of file (executed), the report until, or a failure.
func (h *handshake) wait(ctx context.Context, until byte) error {
	stop := context.AfterFunc(ctx, func() { _ = h.conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	buf := make([]byte, launch.ReportSize+1)
	for {
		n, err := h.conn.Read(buf)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return fmt.Errorf("wait for the process: %w", context.Cause(ctx))
		case errors.Is(err, unix.ECONNRESET), errors.Is(err, io.EOF):
			if until != 0 {
				return errDied
			}
			return nil
		case err != nil:
			return fmt.Errorf("wait for the process: %w", err)
		}
		r, ok := launch.ParseReport(buf[:n])
		if !ok {
			return errs.New(errs.Invalid, "the process sent a report of %d bytes", n)
		}
		if r.Kind == launch.TellFailed {
			return &failure{h.explain(r.Op), unix.Errno(r.Value)}
		}
		if r.Kind == until {
			return nil
		}
		act := h.on[r.Kind]
		if act == nil {
			return errs.New(errs.Invalid, "the process sent an unexpected report %q", r.Kind)
		}
		if err := act(r.Value); err != nil {
			return err
		}
		if err := h.tellGo(); err != nil {
			return err
		}
	}
}

func (h *handshake) tellGo() error {
	if _, err := h.conn.Write([]byte{launch.Go}); err != nil && !errors.Is(err, unix.EPIPE) {
		return fmt.Errorf("tell the process to go on: %w", err)
	}
	return nil // a child that is gone left its report behind, to be read next
}

// syncSocket makes the socket pair; only our end is non-blocking.
func syncSocket() (ours, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("sync socket: %w", err)
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		unix.Close(fds[0])
		unix.Close(fds[1])
		return nil, nil, fmt.Errorf("sync socket: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "sync"), os.NewFile(uintptr(fds[1]), "sync"), nil
}

const gateName = "start.sock"

// gateAddress names the socket through a descriptor of its folder: a path may be longer than an address can be.
func gateAddress(dir *os.File) *unix.SockaddrUnix {
	return &unix.SockaddrUnix{Name: "/proc/self/fd/" + strconv.Itoa(int(dir.Fd())) + "/" + gateName}
}

// listenGate makes the socket on which the child waits for its start.
func listenGate(dir string) (*os.File, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("gate: %w", err)
	}
	defer d.Close()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("gate: %w", err)
	}
	f := os.NewFile(uintptr(fd), "gate")
	if err = unix.Bind(fd, gateAddress(d)); err == nil {
		err = unix.Listen(fd, 1)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("gate: %w", err)
	}
	return f, nil
}

// openGate connects to a child that waits.
func openGate(dir string) (*os.File, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("gate: %w", err)
	}
	defer d.Close()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("gate: %w", err)
	}
	if err := unix.Connect(fd, gateAddress(d)); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("gate: %w", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("gate: %w", err)
	}
	return os.NewFile(uintptr(fd), "gate"), nil
}

// explainExec puts a failed execve into Docker's words.
func explainExec(f *failure, proc *specs.Process) error {
	if !strings.HasPrefix(f.what, "exec ") {
		return f
	}
	name := proc.Args[0]
	switch f.errno {
	case unix.ENOENT:
		if strings.ContainsRune(name, '/') {
			return errs.New(errs.NoCommand, "exec: %q: stat %s: no such file or directory", name, name)
		}
		return errs.New(errs.NoCommand, "exec: %q: executable file not found in $PATH", name)
	case unix.ENOTDIR:
		return errs.New(errs.NoCommand, "exec: %q: stat %s: not a directory", name, name)
	case unix.EISDIR:
		return errs.New(errs.NotExecutable, "exec: %q: is a directory: permission denied", name)
	case unix.EACCES:
		return errs.New(errs.NotExecutable, "exec: %q: permission denied", name)
	case unix.ENOEXEC:
		return errs.New(errs.NotExecutable, "exec %s: exec format error", name)
	}
	return errs.New(errs.NotExecutable, "exec: %q: %w", name, f.errno)
}

// sendListener takes the seccomp listener out of the child and hands it to the agent, with the container's state, as the runtime specification has it.
func sendListener(pidfd *os.File, remote int, sc *specs.LinuxSeccomp, state *specs.State, pid int) error {
	fd, err := unix.PidfdGetfd(int(pidfd.Fd()), remote, 0)
	if err != nil {
		return fmt.Errorf("seccomp listener: %w", err)
	}
	defer unix.Close(fd)
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: filepath.Clean(sc.ListenerPath), Net: "unix"})
	if err != nil {
		return fmt.Errorf("seccomp listener: %w", err)
	}
	defer conn.Close()
	body, err := marshal(specs.ContainerProcessState{
		Version: specs.Version, Fds: []string{specs.SeccompFdName}, Pid: pid, Metadata: sc.ListenerMetadata, State: *state,
	})
	if err != nil {
		return err
	}
	if _, _, err := conn.WriteMsgUnix(body, unix.UnixRights(fd), nil); err != nil {
		return fmt.Errorf("seccomp listener: %w", err)
	}
	return nil
}
