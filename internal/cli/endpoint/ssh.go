package endpoint

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/url"
	"os/exec"
	"strings"
	"sync"
	"time"
)

// dialSSH runs the ssh program with `system dial-stdio` on the other side and talks through its standard streams.
// The other side may have corten or docker.
func dialSSH(ctx context.Context, host string) (net.Conn, error) {
	u, err := url.Parse(host)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command("ssh", sshArgs(u)...)
	apart(cmd)
	c := &cmdConn{cmd: cmd, host: host}
	cmd.Stderr, cmd.WaitDelay = &c.stderr, time.Second // a shared connection that stays behind keeps it open
	if c.in, err = cmd.StdinPipe(); err != nil {
		return nil, err
	}
	if c.out, err = cmd.StdoutPipe(); err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start ssh for %s: %w", host, err)
	}
	return c, ctx.Err()
}

func sshArgs(u *url.URL) []string {
	args := []string{"-o", "ConnectTimeout=30", "-T"}
	if u.User.Username() != "" {
		args = append(args, "-l", u.User.Username())
	}
	if u.Port() != "" {
		args = append(args, "-p", u.Port())
	}
	tail := "system dial-stdio"
	if p := strings.TrimSuffix(u.Path, "/"); p != "" {
		tail = "--host " + quote("unix://"+p) + " " + tail
	}
	remote := "if command -v corten >/dev/null 2>&1; then exec corten " + tail + "; else exec docker " + tail + "; fi"
	return append(args, "--", u.Hostname(), remote)
}

// quote protects s from a POSIX shell.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// cmdConn is a connection through a program's standard streams.
type cmdConn struct {
	cmd    *exec.Cmd
	host   string
	in     io.WriteCloser
	out    io.ReadCloser
	stderr tail
	met    bool // the other side has said something: the connection came about
	once   sync.Once
	err    error
}

// SSHError is what the ssh program said when it ended: no such host, refused, no key fits, no engine there. Met tells that the connection had come about before.
type SSHError struct {
	Host, Said string
	Met        bool
}

func (e *SSHError) Error() string { return fmt.Sprintf("%s: %s", e.Host, e.Said) }

// Unwrap tells that a connection broke off.
func (e *SSHError) Unwrap() error {
	if e.Met {
		return io.ErrUnexpectedEOF
	}
	return nil
}

func (c *cmdConn) Read(p []byte) (int, error) {
	n, err := c.out.Read(p)
	if n > 0 {
		c.met = true
	}
	if err == nil || n > 0 {
		return n, err
	}
	c.finish(time.Second) // only then has it said all that it has to say
	said := c.stderr.lastLine()
	if said == "" && c.met {
		return 0, err
	}
	if said == "" {
		said = "ssh ended without a word"
	}
	return 0, &SSHError{Host: c.host, Said: said, Met: c.met}
}

func (c *cmdConn) Write(p []byte) (int, error) { return c.in.Write(p) }

// CloseWrite ends the stream towards the other side.
func (c *cmdConn) CloseWrite() error { return c.in.Close() }

func (c *cmdConn) Close() error {
	c.finish(0)
	return c.err
}

// finish waits for the program's end, and kills it when that takes too long.
func (c *cmdConn) finish(grace time.Duration) {
	c.once.Do(func() {
		c.in.Close()
		timer := time.AfterFunc(grace, func() { c.cmd.Process.Kill() })
		defer timer.Stop()
		if err := c.cmd.Wait(); err != nil && c.cmd.ProcessState == nil {
			c.err = err
		}
	})
}

func (c *cmdConn) LocalAddr() net.Addr                { return stdioAddr{} }
func (c *cmdConn) RemoteAddr() net.Addr               { return stdioAddr{} }
func (c *cmdConn) SetDeadline(t time.Time) error      { return nil }
func (c *cmdConn) SetReadDeadline(t time.Time) error  { return nil }
func (c *cmdConn) SetWriteDeadline(t time.Time) error { return nil }

type stdioAddr struct{}

func (stdioAddr) Network() string { return "stdio" }
func (stdioAddr) String() string  { return "stdio" }

// tail keeps the last bytes of what a program complained about.
type tail struct {
	mu  sync.Mutex // guards buf
	buf []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p...)
	if n := len(t.buf); n > 4096 {
		t.buf = append([]byte(nil), t.buf[n-4096:]...)
	}
	return len(p), nil
}

func (t *tail) lastLine() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	lines := bytes.Split(bytes.TrimSpace(t.buf), []byte("\n"))
	return string(bytes.TrimSpace(lines[len(lines)-1]))
}
