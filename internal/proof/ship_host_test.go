package proof

import (
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"corten.dev/corten/internal/enginetest"
)

// counter is a socket that leads to an engine, and counts what goes there.
type counter struct {
	net.Listener
	path string
	in   atomic.Int64
	slow atomic.Bool // 4 KiB in a millisecond
}

func newCounter(t *testing.T, e *enginetest.Engine) *counter {
	t.Helper()
	c := &counter{path: filepath.Join(e.Dir, "counted.sock")}
	var err error
	if c.Listener, err = net.Listen("unix", c.path); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	go func() {
		for {
			conn, err := c.Accept()
			if err != nil {
				return
			}
			go c.serve(conn, strings.TrimPrefix(e.Socket(), "unix://"))
		}
	}()
	return c
}

func (c *counter) serve(conn net.Conn, to string) {
	defer conn.Close()
	far, err := net.Dial("unix", to)
	if err != nil {
		return
	}
	defer far.Close()
	go func() {
		buf := make([]byte, 32<<10)
		for {
			n := len(buf)
			if c.slow.Load() {
				time.Sleep(time.Millisecond)
				n = 4 << 10
			}
			n, err := conn.Read(buf[:n])
			c.in.Add(int64(n))
			if _, werr := far.Write(buf[:n]); werr != nil || err != nil {
				_ = far.(*net.UnixConn).CloseWrite() // it may be gone
				return
			}
		}
	}()
	_, _ = io.Copy(conn, far) // ends with either side
}

// Images go to an engine on another host by ssh, as a person does it. Only the layers that are missing there travel, whatever they are called; what fails is told in ssh's words,
// with the host's name before them.
func TestPushToHost(t *testing.T) {
	e, far := enginetest.Start(t), enginetest.New(t)
	far.Up()
	port, sshDir := sshServer(t, far)
	way := newCounter(t, far)
	host := "ssh://root@127.0.0.1:" + port + way.path
	push := func(args ...string) *exec.Cmd {
		cmd := e.Client(append([]string{"image", "push"}, args...)...)
		cmd.Env = append(cmd.Env, "PATH="+sshDir+":"+os.Getenv("PATH"))
		return cmd
	}
	grow := func(from, to, name, size string) {
		e.Corten("run", "--name", "grow", from, "sh", "-c", "head -c "+size+" /dev/urandom > /"+name)
		e.Corten("commit", "grow", to)
		e.Corten("rm", "grow")
	}
	grow(enginetest.Busybox, "app:1", "large", "6000000")
	grow("app:1", "app:2", "small", "300000")

	sends := func(what string, least, most int64, args ...string) {
		t.Helper()
		way.in.Store(0)
		out, err := push(append([]string{host}, args...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v %s\n%s", what, err, out, far.Log())
		}
		if n := way.in.Load(); n < least || n > most {
			t.Errorf("%s: %d bytes, want %d to %d: %s", what, n, least, most, out)
		}
	}
	sends("a first push", 6_000_000, 9_000_000, "app:1")
	sends("a changed image", 300_000, 350_000, "app:2")
	sends("nothing new", 0, 50_000, "app:1", "app:2")
	const sums = "md5sum /large /small"
	if here, there := e.Corten("run", "--rm", "app:2", "sh", "-c", sums), far.Corten("run", "--rm", "app:2", "sh", "-c", sums); here != there {
		t.Errorf("%s became %s", here, there)
	}
	if here, there := e.Corten("image", "inspect", "-f", "{{.Id}}", "app:1"), far.Corten("image", "inspect", "-f", "{{.Id}}", "app:1"); here != there {
		t.Errorf("%s became %s", here, there)
	}

	_, nobody, err := net.SplitHostPort(enginetest.Addr(t))
	if err != nil {
		t.Fatal(err)
	}
	refused := func(host, words string) {
		t.Helper()
		out, err := push(host, "app:1").CombinedOutput()
		if text := string(out); err == nil || !strings.HasPrefix(text, "Cannot connect to the Corten engine at "+host+": ") || !strings.Contains(text, words) || strings.Count(text, "\n") != 1 {
			t.Errorf("%s: %v %s", host, err, text)
		}
	}
	refused("ssh://root@127.0.0.1:"+nobody, "ssh: connect to host 127.0.0.1 port "+nobody+": Connection refused")
	refused("ssh://root@127.0.0.1:"+port+"/nowhere.sock", "unix:///nowhere.sock")
	refused("ssh://nobody@127.0.0.1:"+port, "Permission denied")

	// The other engine is killed in the middle: the error says which one, and the same push works when it is back.
	grow("app:2", "app:3", "more", "4000000")
	way.in.Store(0)
	way.slow.Store(true)
	cmd := push("-q", host, "app:3")
	var said strings.Builder
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	wait(t, "the middle of a push", func() bool { return way.in.Load() > 500_000 })
	far.Kill9()
	if err := cmd.Wait(); err == nil || !strings.HasPrefix(said.String(), "The Corten engine at "+host+" went away ") {
		t.Errorf("%v %q", err, said.String())
	}
	way.slow.Store(false)
	far.Up()
	sends("again", 4_000_000, 4_400_000, "app:3")
	far.Corten("run", "--rm", "app:3", "true")
}
