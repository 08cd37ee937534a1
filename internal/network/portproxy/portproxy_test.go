package portproxy

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func ask(t *testing.T, c *net.UnixConn, req Request, f *os.File) Answer {
	t.Helper()
	raw, err := json.Marshal(req)
	if err != nil {
		t.Fatal(err)
	}
	var oob []byte
	if f != nil {
		oob = unix.UnixRights(int(f.Fd()))
	}
	if _, _, err := c.WriteMsgUnix(raw, oob, nil); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 4096)
	n, err := c.Read(buf)
	var ans Answer
	if err == nil {
		err = json.Unmarshal(buf[:n], &ans)
	}
	if err != nil {
		t.Fatal(err)
	}
	return ans
}

// An engine that starts the proxy hands it all its ports, and then those again whose requests had been waiting. The second time closed the ways of senders that had
// sent already: the answer to a first udp packet never came.
func TestAPortHandedOverAgainKeepsItsFlows(t *testing.T) {
	target, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer target.Close()
	front, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer front.Close()
	f, err := front.(*net.UDPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p := &proxy{ports: map[string]*port{}}
	add := func() {
		if err := p.add(Request{Op: "add", Key: "udp/x", To: target.LocalAddr().String()}, f); err != nil {
			t.Fatal(err)
		}
	}
	add()
	c, err := net.Dial("udp", front.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	limit := time.Now().Add(30 * time.Second)
	if err := errors.Join(c.SetDeadline(limit), target.SetDeadline(limit)); err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(c, "?")
	buf := make([]byte, 10)
	_, from, err := target.ReadFrom(buf)
	if err != nil {
		t.Fatal(err)
	}
	add()
	if _, err := target.WriteTo([]byte("!"), from); err != nil {
		t.Fatal(err)
	}
	if n, err := c.Read(buf); err != nil || string(buf[:n]) != "!" {
		t.Errorf("%q %v", buf[:n], err)
	}
	if err := p.ports["udp/x"].close(); err != nil {
		t.Error(err)
	}
}

func TestPortsComeAndGo(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	ctl, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- Serve(ctl) }()
	engine, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	target, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer target.Close()
	go func() {
		for {
			c, err := target.Accept()
			if err != nil {
				return
			}
			go func() { // says back what was said, once the other side has finished
				defer c.Close()
				raw, _ := io.ReadAll(c)
				fmt.Fprintf(c, "got %s", raw)
			}()
		}
	}()
	front, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		t.Skip("no IPv6 here")
	}
	addr := front.Addr().String()
	f, err := front.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	key := "tcp/" + addr
	if ans := ask(t, engine, Request{Op: "add", Key: key, To: target.Addr().String()}, f); ans.Err != "" {
		t.Fatal(ans.Err)
	}
	f.Close()
	front.Close() // the proxy has its own
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(c, "hello")
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if raw, err := io.ReadAll(c); err != nil || string(raw) != "got hello" {
		t.Errorf("%q %v", raw, err)
	}
	c.Close()
	if ans := ask(t, engine, Request{Op: "list"}, nil); ans.Keys[key] != target.Addr().String() {
		t.Errorf("list: %+v", ans)
	}
	for _, bad := range []Request{{Op: "add", Key: key, To: "nowhere"}, {Op: "add", Key: "x", To: "1.2.3.4:5"}, {Op: "dance"}} {
		if ans := ask(t, engine, bad, nil); ans.Err == "" || strings.Contains(ans.Err, "panic") {
			t.Errorf("%+v: %+v", bad, ans)
		}
	}
	if ans := ask(t, engine, Request{Op: "drop", Key: key}, nil); ans.Err != "" {
		t.Error(ans.Err)
	}
	if c, err := net.Dial("tcp", addr); err == nil {
		c.Close()
		t.Error("a dropped port still answers")
	}
	engine.Close()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(30 * time.Second):
		t.Error("nothing left to do, and it goes on")
	}
}
