package enginetest

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"
)

// Ground is what one engine has of the host for itself: names that nobody else has, and a subnet that no other test has while this one runs, in whatever process.
type Ground struct {
	Bridge, Table string       // the table's name serves for cgroups, too
	BIP           netip.Prefix // the bridge's address, a /24 in 10.200.0.0 to 10.212.255.255
	Pool          netip.Prefix // a /19 in 10.213.0.0 to 10.228.255.255, for networks that name no subnet
	Lab           netip.Prefix // a /24 in 10.236.0.0 to 10.236.255.255, for a test that names one
}

// NewGround takes a ground until the end of the test.
//
// Two engines of one subnet answer each other's packets. Tests run beside tests of other packages and other clones, so chance is not enough: whoever has a subnet listens at an abstract
// socket with its name. Such names belong to a network namespace, as subnets do, and end with their process.
func NewGround(t testing.TB) Ground {
	t.Helper()
	var id [4]byte
	_, _ = rand.Read(id[:]) // never fails
	name := hex.EncodeToString(id[:])
	g := Ground{Bridge: "ct" + name, Table: "corten-" + name}
	for range 1000 {
		_, _ = rand.Read(id[:])
		g.BIP = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 200 + id[0]%13, id[1], 1}), 24)
		g.Pool = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 213 + id[2]%16, id[3] &^ 31, 0}), 19)
		g.Lab = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 236, id[2] ^ id[3], 0}), 24)
		if hold(t, g.BIP.Masked().String(), g.Pool.String(), g.Lab.String()) {
			return g
		}
	}
	t.Fatal("no subnet is free for a test: do thousands of them run?")
	return g
}

// Alone waits until no other test of this machine has what it names, say a port that a text is compared with, and keeps it until the end of the test.
func Alone(t testing.TB, what string) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Minute); !hold(t, what); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("another test has had %s for 5 minutes", what)
		}
	}
}

// hold takes all of it, or nothing.
func hold(t testing.TB, things ...string) bool {
	t.Helper()
	var held []net.Listener
	for _, what := range things {
		l, err := net.Listen("unix", "@corten-test-"+what)
		if err != nil {
			if !errors.Is(err, syscall.EADDRINUSE) {
				t.Fatal(err)
			}
			for _, l := range held {
				_ = l.Close()
			}
			return false
		}
		held = append(held, l)
	}
	t.Cleanup(func() {
		for _, l := range held {
			_ = l.Close()
		}
	})
	return true
}

// Ports finds n neighbouring ports of the host at which nobody listens, and gives the first. No other test gets them before the end of this one, and no connection that begins on this machine:
// they lie below the range from which the kernel takes such ports.
func Ports(t testing.TB, n uint16) uint16 {
	t.Helper()
	for range 1000 {
		var id [2]byte
		_, _ = rand.Read(id[:]) // never fails
		first := 20000 + (uint16(id[0])<<8|uint16(id[1]))%12000
		var names []string
		free := true
		for port := first; port < first+n; port++ {
			names = append(names, fmt.Sprint("port ", port))
			free = free && nobodyListens(port)
		}
		if free && hold(t, names...) {
			return first
		}
	}
	t.Fatal("no free ports")
	return 0
}

func nobodyListens(port uint16) bool {
	addr := fmt.Sprint(":", port)
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return false
	}
	p, err := net.ListenPacket("udp", addr)
	if err != nil {
		_ = l.Close()
		return false
	}
	return errors.Join(l.Close(), p.Close()) == nil
}

// Addr is an address of [Ports] on the host's loopback.
func Addr(t testing.TB) string {
	t.Helper()
	return fmt.Sprint("127.0.0.1:", Ports(t, 1))
}
