package client

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"corten.dev/corten/internal/enginetest"
)

// dockerRegistry starts Debian's docker-registry, the reference of the protocol; tests that need it skip where it is not installed.
func dockerRegistry(t *testing.T, extra string) string {
	t.Helper()
	bin, err := exec.LookPath("docker-registry")
	if err != nil {
		t.Skip("docker-registry is not installed")
	}
	addr := enginetest.Addr(t)
	dir := t.TempDir()
	conf := filepath.Join(dir, "config.yml")
	text := fmt.Sprintf("version: 0.1\nlog: {level: error}\nstorage: {delete: {enabled: true}, filesystem: {rootdirectory: %s}}\nhttp: {addr: %s}\n%s", dir, addr, extra)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(bin, "serve", conf)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cmd.Process.Kill(); err != nil {
			t.Error(err)
		}
		_ = cmd.Wait() // killed
	})
	for range 1500 {
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			conn.Close()
			return addr
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatal("docker-registry did not come up")
	return ""
}

func TestJourneyDockerRegistry(t *testing.T) {
	journey(t, dockerRegistry(t, ""), Credentials{}, true)
}

func TestJourneyDockerRegistryWithPassword(t *testing.T) {
	file := filepath.Join(t.TempDir(), "htpasswd")
	if err := os.WriteFile(file, []byte("ann:"+bcrypted+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	host := dockerRegistry(t, fmt.Sprintf("auth: {htpasswd: {realm: here, path: %s}}\n", file))
	creds := Credentials{Username: "ann", Password: "pa55:word"}
	c := quick(t, nil)
	if _, err := c.Login(t.Context(), host, creds); err != nil {
		t.Fatal(err)
	}
	_, err := c.Login(t.Context(), host, Credentials{Username: "ann", Password: "wrong-word"})
	if want := fmt.Sprintf(`Get "http://%s/v2/": unauthorized: authentication required`, host); err == nil || err.Error() != want {
		t.Fatalf("login with the wrong password: %v, want %s", err, want)
	}
	_, err = repo(t, c, host+"/team/app", Credentials{}).Resolve(t.Context(), "1")
	if want := fmt.Sprintf(`Get "http://%s/v2/team/app/manifests/1": no basic auth credentials`, host); err == nil || err.Error() != want {
		t.Fatalf("without a password: %v, want %s", err, want)
	}
	journey(t, host, creds, true)
}

// bcrypted is "pa55:word".
const bcrypted = "$2a$04$9e.ryWG.E9p68cjBqs3N0.qkSo2wrM1X4zRBJ5O5xI/ZhbJ8XIO3O"

// cutting lines is what networks do: the first connection that carries more than limit bytes to the registry is cut.
type cutLine struct {
	net.Listener
	to      string
	limit   int64
	carried atomic.Int64
	cut     atomic.Bool
}

func newCutLine(t *testing.T, to string, limit int64) *cutLine {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	line := &cutLine{Listener: l, to: to, limit: limit}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			go line.carry(in)
		}
	}()
	return line
}

func (l *cutLine) carry(in net.Conn) {
	defer in.Close()
	out, err := net.Dial("tcp", l.to)
	if err != nil {
		return
	}
	defer out.Close()
	go func() {
		io.Copy(in, out)
		in.Close()
	}()
	buf, total := make([]byte, 32<<10), int64(0)
	for {
		n, err := in.Read(buf)
		if _, werr := out.Write(buf[:n]); err != nil || werr != nil {
			return
		}
		l.carried.Add(int64(n))
		if total += int64(n); total > l.limit && l.cut.CompareAndSwap(false, true) {
			return
		}
	}
}

// resumes pushes over a line that is cut in the middle, and gives how many bytes it took.
func resumes(t *testing.T, registry string, known bool) int64 {
	t.Helper()
	raw, d := noise(16 << 20)
	line := newCutLine(t, registry, 9<<20)
	r := repo(t, quick(t, nil), line.Addr().String()+"/team/app", Credentials{})
	up := toSend(raw, d.Digest, d.Size)
	if !known {
		up = toSend(raw, "", -1)
	}
	if got, err := r.Push(t.Context(), up); err != nil || got.Digest != d.Digest || !line.cut.Load() {
		t.Fatalf("%v %v, cut %v", got, err, line.cut.Load())
	}
	dst := &sink{}
	if err := r.Fetch(t.Context(), d, dst); err != nil || !bytes.Equal(dst.Bytes(), raw) {
		t.Fatalf("what was pushed: %d bytes, %v", dst.Len(), err)
	}
	return line.carried.Load()
}

// docker-registry does not take up what a broken connection left: the upload begins anew, and ends well.
func TestPushOverABrokenLineDockerRegistry(t *testing.T) {
	host := dockerRegistry(t, "")
	for _, known := range []bool{true, false} {
		if n := resumes(t, host, known); n > 30<<20 {
			t.Errorf("size and digest known %v: %d bytes for 16 MiB", known, n)
		}
	}
}
