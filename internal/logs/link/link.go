// Package link is a connection to a receiver of logs.
//
// It owns dialling (tcp, tls, udp, unix and unixgram sockets) and knowing when the receiver has what was written. It knows no log format. It promises: Write on a stream returns nil only
// when the receiver's kernel has acknowledged every byte (over a unix socket: when the receiver has read it) and the receiver had not closed its end by then; no Write waits for ever.
//
// What a program behind a TCP socket does with acknowledged bytes nobody can know: a receiver that is killed with bytes unread loses them. Protocols with answers of
// their own (fluentd's acknowledgements) close that gap.
package link

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/logs/ship"
)

// Options say where a receiver is.
type Options struct {
	Network string // tcp, udp, unix, unixgram
	Address string
	TLS     *tls.Config // over tcp
	// Stall is how long a receiver may take nothing before Write gives up; default a minute.
	Stall time.Duration
}

// Link is an open connection. One goroutine at a time.
type Link struct {
	net.Conn
	raw    syscall.RawConn
	stream bool
	stall  time.Duration
}

const (
	dialTimeout = 10 * time.Second
	defaultWait = time.Minute
)

// Dial connects.
func Dial(ctx context.Context, opts Options) (*Link, error) {
	d := net.Dialer{Timeout: dialTimeout}
	conn, err := d.DialContext(ctx, opts.Network, opts.Address)
	if err != nil {
		return nil, err
	}
	l := &Link{Conn: conn, stall: opts.Stall, stream: opts.Network != "udp" && opts.Network != "unixgram"}
	if l.stall <= 0 {
		l.stall = defaultWait
	}
	if sc, ok := conn.(syscall.Conn); ok {
		if l.raw, err = sc.SyscallConn(); err != nil {
			return nil, errors.Join(err, conn.Close())
		}
	}
	if opts.TLS != nil {
		conf := opts.TLS
		if conf.ServerName == "" && !conf.InsecureSkipVerify {
			conf = conf.Clone()
			if conf.ServerName, _, err = net.SplitHostPort(opts.Address); err != nil {
				return nil, errors.Join(err, conn.Close())
			}
		}
		secure := tls.Client(conn, conf)
		hctx, cancel := context.WithTimeout(ctx, dialTimeout)
		defer cancel()
		if err := secure.HandshakeContext(hctx); err != nil {
			return nil, errors.Join(fmt.Errorf("tls to %s: %w", opts.Address, err), conn.Close())
		}
		l.Conn = secure
	}
	return l, nil
}

// Write writes b whole. On a stream, nil means that the receiver's kernel has it.
func (l *Link) Write(ctx context.Context, b []byte) error {
	stop := context.AfterFunc(ctx, func() { l.SetDeadline(time.Now()) })
	defer stop()
	for len(b) > 0 {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		n := len(b)
		if l.stream { // so that progress is seen on a slow line
			n = min(n, 64<<10)
		}
		if err := l.SetWriteDeadline(time.Now().Add(l.stall)); err != nil {
			return err
		}
		n, err := l.Conn.Write(b[:n])
		if err != nil {
			return err
		}
		b = b[n:]
	}
	if !l.stream {
		return l.answered()
	}
	return l.settled(ctx)
}

// answered looks for what the network said of a datagram already: that nobody listens. From this host that comes at once; from another one the next Write hears it.
func (l *Link) answered() error {
	code := 0
	err := l.raw.Control(func(fd uintptr) { code, _ = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR) })
	if err == nil && code != 0 {
		err = fmt.Errorf("send to %s: %w", l.RemoteAddr(), syscall.Errno(code))
	}
	return err
}

// settled waits until nothing is on its way any more, and looks whether the receiver is still there.
func (l *Link) settled(ctx context.Context) error {
	last, since := -1, time.Now()
	for pause := 50 * time.Microsecond; ; pause = min(2*pause, 10*time.Millisecond) {
		left, err := l.unacknowledged()
		if err != nil {
			return err
		}
		if left == 0 {
			return l.alive()
		}
		if err := l.alive(); err != nil {
			return err
		}
		if left != last {
			last, since = left, time.Now()
		}
		if time.Since(since) > l.stall {
			return fmt.Errorf("%s takes nothing: %w", l.RemoteAddr(), os.ErrDeadlineExceeded)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

// unacknowledged is how many bytes the receiver's kernel (unix: the receiver) does not have yet.
func (l *Link) unacknowledged() (n int, err error) {
	cerr := l.raw.Control(func(fd uintptr) { n, err = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) })
	return n, errors.Join(cerr, err)
}

// alive looks for a receiver that closed its end, or was reset.
func (l *Link) alive() error {
	if !l.stream {
		return nil
	}
	var events int16
	var err error
	cerr := l.raw.Control(func(fd uintptr) {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
		_, err = unix.Poll(p, 0)
		events = p[0].Revents
	})
	switch {
	case cerr != nil:
		return cerr
	case err != nil && !errors.Is(err, unix.EINTR):
		return err
	case events&(unix.POLLERR|unix.POLLHUP|unix.POLLRDHUP) != 0:
		return fmt.Errorf("%s closed the connection: %w", l.RemoteAddr(), io.ErrUnexpectedEOF)
	}
	return nil
}

// TLS reads the four usual options of a driver, PREFIX-ca-cert, -cert, -key and -skip-verify.
func TLS(opts map[string]string, prefix string) (*tls.Config, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	if text, ok := opts[prefix+"-skip-verify"]; ok {
		// Docker takes any value that is no boolean for true.
		skip, err := strconv.ParseBool(text)
		conf.InsecureSkipVerify = err != nil || skip
	}
	if ca := opts[prefix+"-ca-cert"]; ca != "" {
		pem, err := os.ReadFile(ca)
		if err != nil {
			return nil, fmt.Errorf("%s-ca-cert: %w", prefix, err)
		}
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(pem) {
			return nil, errs.New(errs.Invalid, "%s-ca-cert: %s holds no certificate", prefix, ca)
		}
	}
	cert, key := opts[prefix+"-cert"], opts[prefix+"-key"]
	if (cert == "") != (key == "") {
		return nil, errs.New(errs.Invalid, "%s-cert and %s-key belong together", prefix, prefix)
	}
	if cert != "" {
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			return nil, fmt.Errorf("%s-cert, %s-key: %w", prefix, prefix, err)
		}
		conf.Certificates = []tls.Certificate{pair}
	}
	return conf, nil
}

// TLSOptions names the options that [TLS] reads.
func TLSOptions(prefix string) []string {
	return []string{prefix + "-ca-cert", prefix + "-cert", prefix + "-key", prefix + "-skip-verify"}
}

// Refused marks what a datagram socket says of a message that is too large for it: no other try will help.
func Refused(err error) error {
	if errors.Is(err, unix.EMSGSIZE) {
		return fmt.Errorf("%w: %w", ship.ErrRefused, err)
	}
	return err
}
