package server

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"os/user"
	"strconv"
	"strings"
	"syscall"
	"time"

	"corten.dev/corten/internal/errs"
)

// Listen opens one -H address: unix://PATH, tcp://HOST:PORT (with TLS when tlsConfig is given) or fd:// (a socket that systemd handed over).
// A unix socket gets mode 0660, and the group (name or number) if one is given; one that does not exist is refused.
func Listen(host, group string, tlsConfig *tls.Config) (net.Listener, error) {
	scheme, addr, ok := strings.Cut(host, "://")
	if !ok {
		scheme, addr = "tcp", host
		if strings.HasPrefix(host, "/") {
			scheme = "unix"
		}
	}
	switch scheme {
	case "unix":
		return listenUnix(addr, group)
	case "tcp":
		return listenTCP(addr, tlsConfig)
	case "fd":
		return listenFD(addr)
	}
	return nil, errs.New(errs.Invalid, "invalid host %q: unix://, tcp:// and fd:// are known", host)
}

func listenTCP(addr string, tlsConfig *tls.Config) (net.Listener, error) {
	addr = strings.TrimSuffix(addr, "/")
	if addr == "" || strings.ContainsAny(addr, "/?#") {
		return nil, errs.New(errs.Invalid, "invalid host \"tcp://%s\": give tcp://ADDRESS:PORT", addr)
	}
	if _, _, err := net.SplitHostPort(addr); err != nil {
		port := "2375"
		if tlsConfig != nil {
			port = "2376"
		}
		addr = net.JoinHostPort(strings.Trim(addr, "[]"), port)
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listen on tcp://%s: %w", addr, err)
	}
	if tlsConfig != nil {
		tlsConfig = tlsConfig.Clone()
		tlsConfig.NextProtos = []string{"http/1.1"}
		l = tls.NewListener(l, tlsConfig)
	}
	return l, nil
}

// listenUnix binds under a temporary umask-free name and renames, so that the socket never exists with a wider mode than it should have, and a
// stale one is replaced at once. A socket that somebody answers on is left alone.
func listenUnix(path, group string) (net.Listener, error) {
	if path == "" || !strings.HasPrefix(path, "/") {
		return nil, errs.New(errs.Invalid, "invalid host \"unix://%s\": the path must be absolute", path)
	}
	gid, err := lookupGroup(group)
	if err != nil {
		return nil, err
	}
	if err := stale(path); err != nil {
		return nil, err
	}
	temp := path + "." + strconv.Itoa(os.Getpid())
	if err := os.Remove(temp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("listen on unix://%s: %w", path, err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: temp, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen on unix://%s: %w", path, err)
	}
	l.SetUnlinkOnClose(false)
	err = errors.Join(os.Chmod(temp, 0o600), os.Chown(temp, -1, gid), os.Chmod(temp, 0o660))
	if err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen on unix://%s: %w", path, err), l.Close(), os.Remove(temp))
	}
	info, err := os.Lstat(path)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen on unix://%s: %w", path, err), l.Close())
	}
	return &unixListener{UnixListener: l, path: path, made: info}, nil
}

// unixListener removes its socket when closed, unless another engine has put its own there since.
type unixListener struct {
	*net.UnixListener
	path string
	made os.FileInfo
}

// Addr names the path that clients use.
func (l *unixListener) Addr() net.Addr { return &net.UnixAddr{Name: l.path, Net: "unix"} }

// Close ends listening and removes the socket.
func (l *unixListener) Close() error {
	err := l.UnixListener.Close()
	if now, serr := os.Lstat(l.path); serr == nil && os.SameFile(now, l.made) {
		err = errors.Join(err, os.Remove(l.path))
	}
	return err
}

// stale refuses a path where somebody listens or where something else than a socket is.
func stale(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("listen on unix://%s: %w", path, err)
	case info.Mode()&os.ModeSocket == 0:
		return errs.New(errs.Conflict, "listen on unix://%s: there is something that is not a socket", path)
	}
	conn, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		_ = conn.Close()
		return errs.New(errs.Conflict, "listen on unix://%s: an engine listens there already", path)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("listen on unix://%s: whether it is in use: %w", path, err)
	}
	return nil
}

func lookupGroup(group string) (int, error) {
	if group == "" {
		return -1, nil
	}
	if gid, err := strconv.Atoi(group); err == nil {
		return gid, nil
	}
	g, err := user.LookupGroup(group)
	if err != nil {
		return 0, errs.New(errs.NotFound, "group %s not found: create it, or choose another with --group", group)
	}
	return strconv.Atoi(g.Gid)
}

// listenFD takes a socket that systemd passed (sd_listen_fds): by number, by name, or the only one.
func listenFD(which string) (net.Listener, error) {
	which = strings.TrimSuffix(which, "/")
	if pid := os.Getenv("LISTEN_PID"); pid != strconv.Itoa(os.Getpid()) {
		return nil, errs.New(errs.Invalid, "no sockets were handed over for fd://%s: start the engine by socket activation, or name another host", which)
	}
	n, err := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	if err != nil || n < 1 {
		return nil, errs.New(errs.Invalid, "no sockets were handed over for fd://%s", which)
	}
	const first = 3
	fd := -1
	names := strings.Split(os.Getenv("LISTEN_FDNAMES"), ":")
	for i := range n {
		if which == "" || which == "*" || which == strconv.Itoa(first+i) || i < len(names) && which == names[i] {
			fd = first + i
			break
		}
	}
	if fd < 0 {
		return nil, errs.New(errs.NotFound, "no socket named %q was handed over", which)
	}
	syscall.CloseOnExec(fd)
	f := os.NewFile(uintptr(fd), "fd://"+which)
	l, err := net.FileListener(f)
	return l, errors.Join(err, f.Close())
}
