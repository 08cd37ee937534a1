package dns

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"corten.dev/corten/internal/network/resident"
	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"
)

// serving starts a server behind a control socket, and says how it ended.
func serving(t *testing.T) (path string, ended <-chan error) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "s")
	ln, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	end := make(chan error, 1)
	go func() { end <- Serve(ln, "", "this", slog.New(slog.DiscardHandler)) }()
	return path, end
}

func dialServer(t *testing.T, path string) *net.UnixConn {
	t.Helper()
	c, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func request(t *testing.T, c *net.UnixConn, req any, files ...*os.File) (ans Answer, got []*os.File) {
	t.Helper()
	if err := errors.Join(c.SetDeadline(time.Now().Add(20*time.Second)), resident.Send(c, req, files)); err != nil {
		t.Fatal(err)
	}
	buf, oob := make([]byte, 256<<10), make([]byte, unix.CmsgSpace(4*maxFiles))
	n, oobn, _, _, err := c.ReadMsgUnix(buf, oob)
	if err == nil {
		got, err = resident.Descriptors(oob[:oobn])
	}
	if err = errors.Join(err, json.Unmarshal(buf[:max(n, 0)], &ans)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = resident.Close(got) })
	return ans, got
}

func TestResidentGoesOnWithoutEngine(t *testing.T) {
	path, ended := serving(t)
	engine := dialServer(t, path)
	udp, tcp, port, _, err := Listen(netip.MustParseAddr("127.0.0.1"))
	if err != nil {
		t.Fatal(err)
	}
	files := []*os.File{os.NewFile(uintptr(udp), "udp"), os.NewFile(uintptr(tcp), "tcp")}
	e := Entry{Owner: "a", Networks: []Membership{{ID: "1", Name: "blue", Internal: true, Addrs: []netip.Addr{netip.MustParseAddr("10.0.0.2")}, Names: []string{"Web"}}}}
	if ans, _ := request(t, engine, Request{Op: "set", Entry: &e}, files...); ans.Err != "" {
		t.Fatal(ans.Err)
	}
	if err := resident.Close(files); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []Request{{Op: "set"}, {Op: "set", Entry: &Entry{}}, {Op: "get", Owner: "b"}, {Op: "dance"}} {
		if ans, _ := request(t, engine, bad); ans.Err == "" {
			t.Errorf("%+v is accepted", bad)
		}
	}
	engine.Close()
	c, err := net.Dial("udp", fmt.Sprint("127.0.0.1:", port))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ask := func(name string) dnsmessage.Message {
		t.Helper()
		buf := make([]byte, 1500)
		if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write(query(t, name, dnsmessage.TypeA)); err != nil {
			t.Fatal(err)
		}
		n, err := c.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		return unpack(t, buf[:n])
	}
	if m := ask("web.blue."); len(m.Answers) != 1 {
		t.Errorf("without engine: %+v", m)
	}
	if m := ask("example.com."); m.RCode != dnsmessage.RCodeNameError {
		t.Errorf("an internal network reaches outside: %v", m.RCode)
	}

	engine = dialServer(t, path)
	for i := range listPage { // more than one page
		b := e
		b.Owner = fmt.Sprintf("b%04d", i)
		if ans, _ := request(t, engine, Request{Op: "set", Entry: &b}); ans.Err != "" {
			t.Fatal(ans.Err)
		}
	}
	first, _ := request(t, engine, Request{Op: "list"})
	second, _ := request(t, engine, Request{Op: "list", Owner: first.Owners[len(first.Owners)-1]})
	if first.Program != "this" || len(first.Owners) != listPage || len(second.Owners) != 1 {
		t.Errorf("list: %s, %d and %d owners", first.Program, len(first.Owners), len(second.Owners))
	}
	ans, got := request(t, engine, Request{Op: "get", Owner: "a"})
	if len(got) != 2 || ans.Entry == nil || strings.Join(ans.Entry.Networks[0].Names, "") != "Web" {
		t.Errorf("got %+v with %d sockets", ans, len(got))
	}

	// Another server takes the sockets over before this one ends: nothing is lost between them.
	next, nextEnded := serving(t)
	heir := dialServer(t, next)
	if ans, _ := request(t, heir, Request{Op: "set", Entry: ans.Entry}, got...); ans.Err != "" {
		t.Fatal(ans.Err)
	}
	if ans, _ := request(t, engine, Request{Op: "end"}); ans.Err != "" {
		t.Fatal(ans.Err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if m := ask("WEB."); len(m.Answers) != 1 {
		t.Errorf("from the heir: %+v", m)
	}
	if ans, _ := request(t, heir, Request{Op: "drop", Owner: "a"}); ans.Err != "" {
		t.Error(ans.Err)
	}
	heir.Close()
	if err := <-nextEnded; err != nil {
		t.Error(err)
	}
}

// An engine was killed while it set an entry; the next one listed the owners before the server had read that last request. What it had listed had no sockets, and what it had not stayed
// for ever: the server never ended.
func TestResidentFinishesWithTheDeadFirst(t *testing.T) {
	path, _ := serving(t)
	dialServer(t, path) // or the server ends when it has nothing to do between two rounds
	for i := range 200 {
		udp, tcp, _, _, err := Listen(netip.MustParseAddr("127.0.0.1"))
		if err != nil {
			t.Fatal(err)
		}
		files := []*os.File{os.NewFile(uintptr(udp), "udp"), os.NewFile(uintptr(tcp), "tcp")}
		owner := fmt.Sprint("o", i)
		dead := dialServer(t, path)
		if err := resident.Send(dead, Request{Op: "set", Entry: &Entry{Owner: owner}}, files); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(dead.Close(), resident.Close(files)); err != nil {
			t.Fatal(err)
		}
		next := dialServer(t, path)
		if ans, _ := request(t, next, Request{Op: "list"}); len(ans.Owners) != 1 || ans.Owners[0] != owner {
			t.Fatalf("round %d: owners %q", i, ans.Owners)
		}
		ans, got := request(t, next, Request{Op: "get", Owner: owner})
		if ans.Entry == nil || len(got) != 2 {
			t.Fatalf("round %d: entry %v with %d sockets", i, ans.Entry, len(got))
		}
		if ans, _ := request(t, next, Request{Op: "drop", Owner: owner}); ans.Err != "" {
			t.Fatal(ans.Err)
		}
		if err := next.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// On a slow machine the gate was there before the engine's other connections; the server took its end (of being read) for the last engine's, and was gone before anybody had asked it for something.
func TestResidentWaitsForWhoOpensTheGate(t *testing.T) {
	path, ended := serving(t)
	gate := dialServer(t, path)
	if err := resident.Send(gate, Request{Op: "gate"}, nil); err != nil {
		t.Fatal(err)
	}
	time.Sleep(20 * time.Millisecond) // longer, and it would only find less
	engine := dialServer(t, path)
	if ans, _ := request(t, engine, Request{Op: "list"}); ans.Err != "" || ans.Program != "this" {
		t.Errorf("got %+v", ans)
	}
	if ans, _ := request(t, engine, Request{Op: "end"}); ans.Err != "" {
		t.Error(ans.Err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
