package netlink

import (
	"errors"
	"net/netip"
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

func TestLoopbackIsThere(t *testing.T) {
	c, err := Dial(unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	lo, err := c.LinkByName("lo")
	if err != nil || lo.Index != 1 {
		t.Errorf("lo: %+v %v", lo, err)
	}
	if _, err := c.LinkByName("nosuchlink"); !errors.Is(err, unix.ENODEV) {
		t.Errorf("no such link: %v", err)
	}
	if all, err := c.Links(""); err != nil || len(all) == 0 {
		t.Errorf("links: %v %v", all, err)
	}
	if _, err := c.Addrs(); err != nil {
		t.Error(err)
	}
	if _, err := c.Routes(); err != nil {
		t.Error(err)
	}
}

func TestBatchInItsOwnNamespace(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	runtime.LockOSThread() // never unlocked: the thread and its namespace end with the test
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Skip(err)
	}
	c, err := Dial(unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var b Batch
	b.AddBridge("b0", "note", []byte{2, 0x42, 1, 2, 3, 4}, 1400)
	b.AddVeth(Veth{Name: "v0", PeerName: "v1", MTU: 1400, Alias: "mine"})
	b.DelLink("nosuchlink") // one failure does not hide, nor undo, the others
	b.SetUpName("v1")
	err = c.Do(&b)
	var e *Error
	if !errors.As(err, &e) || e.Request != "delete link nosuchlink" || !errors.Is(err, unix.ENODEV) {
		t.Fatalf("got %v", err)
	}
	br, err := c.LinkByName("b0")
	if err != nil || br.Kind != "bridge" || br.MTU != 1400 || br.Alias != "note" || !br.Up {
		t.Fatalf("bridge %+v %v", br, err)
	}
	b.Reset()
	b.AddAddr(br.Index, netip.MustParsePrefix("10.9.8.1/24"))
	b.AddAddr(br.Index, netip.MustParsePrefix("fd00:9::1/64"))
	b.AddRoute(br.Index, netip.MustParsePrefix("10.77.0.0/16"), netip.MustParseAddr("10.9.8.7"))
	if err := c.Do(&b); err != nil {
		t.Fatal(err)
	}
	routes, err := c.Routes()
	if err != nil || len(routes) < 2 {
		t.Errorf("routes %+v %v", routes, err)
	}
	veths, err := c.Links("veth")
	if err != nil || len(veths) != 2 {
		t.Errorf("veths %+v %v", veths, err)
	}
}

func FuzzWalk(f *testing.F) {
	var b Batch
	b.AddVeth(Veth{Name: "v0", PeerName: "v1"})
	f.Add(b.buf)
	f.Fuzz(func(t *testing.T, p []byte) {
		_ = Walk(p, func(h Header, payload []byte) error {
			_, _ = ParseLink(payload)
			parseError(payload, h)
			return nil
		})
	})
}

func ExampleBatch() {
	var b Batch
	b.AddBridge("blue", "", []byte{2, 0x42, 10, 0, 0, 1}, 1500)
	b.AddVeth(Veth{Name: "web", PeerName: "eth0"})
	c, err := Dial(unix.NETLINK_ROUTE)
	if err != nil {
		return
	}
	defer c.Close()
	_ = c.Do(&b) // one datagram, one wait
}

// A long list of connections to forget was sent at once, and refused by the kernel as too long; and the errors of as many requests did not fit the socket's buffer.
func TestBatchesOfAnyLength(t *testing.T) {
	c, err := Dial(unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	const n = 10_000
	for range 2 { // a batch may be sent again
		var b Batch
		for range n {
			b.DelLink("nosuchlink")
		}
		err = c.Do(&b)
		var count func(err error) int
		count = func(err error) (all int) {
			if many, ok := err.(interface{ Unwrap() []error }); ok {
				for _, e := range many.Unwrap() {
					all += count(e)
				}
				return all
			}
			if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EPERM) {
				return 1
			}
			t.Fatal(err)
			return 0
		}
		if got := count(err); got != n {
			t.Fatalf("%d errors of %d requests", got, n)
		}
	}
	if lo, err := c.LinkByName("lo"); err != nil || lo.Index != 1 {
		t.Errorf("lo, after that: %+v %v", lo, err)
	}
}
