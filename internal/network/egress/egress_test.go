package egress

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"corten.dev/corten/internal/linux/nft"
	"corten.dev/corten/internal/network/dns"
	"golang.org/x/sys/unix"
)

// room is the room in a namespace of its own, with a table around it as the network room writes it.
type room struct {
	*Lists
	t       *testing.T
	rewrote int
}

func newRoom(t *testing.T) *room {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	runtime.LockOSThread() // never unlocked: the thread and its namespace end with the test
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Skip(err)
	}
	r := &room{t: t}
	conns := nft.NewConns()
	t.Cleanup(func() { check(t, conns.Close()) })
	r.open(conns)
	r.whole(false)
	return r
}

func (r *room) open(conns *nft.Conns) {
	r.Lists = New(Options{Table: "egresstest", Bridges: "bridges", Conns: conns, Rewrite: func() error { r.rewrote++; r.whole(false); return nil }, Again: func() { r.rewrote++; r.whole(false) }})
}

// whole writes the whole table.
func (r *room) whole(all bool) {
	r.t.Helper()
	tx := &nft.Tx{}
	tx.AddTable("egresstest")
	tx.AddSet("egresstest", nft.Set{Name: "bridges", Key: []nft.Type{nft.IfName}})
	r.Define(tx)
	r.Rules(tx)
	r.Elements(tx, all)
	check(r.t, errors.Join(r.commit(tx), r.Guard(all)))
}

func (r *room) put(name, list string, from ...Source) error {
	r.t.Helper()
	var l *List
	if list != "" {
		var err error
		l, err = Parse(list)
		check(r.t, err)
	}
	return r.Lists.Put(name, func() (*List, []Source) { return l, from })
}

// has is how many elements the kernel has in a set.
func (r *room) has(family uint8, set string) int {
	r.t.Helper()
	all, err := r.elems(family, set)
	check(r.t, err)
	return len(all)
}

func (r *room) tables() string {
	out, err := exec.Command("nft", "list", "tables").CombinedOutput()
	if err != nil {
		r.t.Skip(err)
	}
	return string(out)
}

func source(n int, addrs ...string) Source {
	s := Source{Link: fmt.Sprintf("ve%d", n), MAC: net.HardwareAddr{2, 0x42, 0, 0, 0, byte(n)}}
	for _, a := range addrs {
		s.Addrs = append(s.Addrs, netip.MustParseAddr(a))
	}
	return s
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// What was put is in the kernel, and nothing else; what is taken away is gone, and the bridge family's table with the last owner.
func TestPut(t *testing.T) {
	r := newRoom(t)
	one, two := source(1, "10.1.0.2", "2001:db8::2"), source(2, "10.2.0.2")
	want := func(what string, fences, allowed, ports int) {
		t.Helper()
		if f, a := r.has(0, setFence+"4")+r.has(0, setFence+"6"), r.has(0, setAllow+"4")+r.has(0, setAllow+"6"); f != fences || a != allowed {
			t.Errorf("%s: %d fences, %d ranges", what, f, a)
		}
		if got := strings.Contains(r.tables(), "bridge egresstest"); got != (ports > 0) {
			t.Errorf("%s: tables %s", what, r.tables())
		} else if got && r.has(unix.NFPROTO_BRIDGE, setGuarded) != ports {
			t.Errorf("%s: %d ports", what, r.has(unix.NFPROTO_BRIDGE, setGuarded))
		}
	}
	check(t, r.put("a", "", one))
	want("no list", 0, 0, 0)
	check(t, r.put("a", "192.0.2.0/24:80/tcp,2001:db8:1::/48", one))
	want("a list", 2, 2, 1)
	check(t, r.put("a", "192.0.2.0/24:80/tcp,2001:db8:1::/48", one, two))
	want("one more interface", 3, 3, 2)
	check(t, r.put("a", "192.0.2.0/23", one, two))
	want("another list", 3, 2, 2)
	check(t, r.put("b", "none", source(3, "10.3.0.2")))
	want("one more owner", 4, 2, 3)
	check(t, r.put("a", "192.0.2.0/23", two))
	want("an interface less", 2, 1, 2)
	if !r.Lets("a", "", two.Addrs[0], netip.MustParseAddrPort("192.0.3.1:5"), 17) || r.Lets("a", "", two.Addrs[0], netip.MustParseAddrPort("192.0.4.1:5"), 17) || !r.Lets("c", "", two.Addrs[0], netip.MustParseAddrPort("192.0.4.1:5"), 17) {
		t.Error("judged otherwise than the kernel does")
	}

	// Somebody flushes it all: the next change writes it again.
	check(t, exec.Command("nft", "flush", "ruleset").Run())
	check(t, r.put("b", "198.51.100.0/24", source(3, "10.3.0.2")))
	if r.rewrote != 1 {
		t.Errorf("written again %d times", r.rewrote)
	}
	want("after a flush", 2, 2, 2)
	check(t, r.put("a", ""))
	want("one is gone", 1, 1, 1)
	check(t, r.put("b", ""))
	want("all are gone", 0, 0, 0)
}

// A room after one that was killed takes over what it is told of, and the rest away.
func TestAfterAKill(t *testing.T) {
	r := newRoom(t)
	one, two := source(1, "10.1.0.2"), source(2, "10.1.0.3")
	check(t, errors.Join(r.put("a", "a.example,192.0.2.1", one), r.put("b", "b.example", two)))
	list, err := Parse("none")
	check(t, err)
	check(t, errors.Join(r.PutBridge("br1", list), r.PutBridge("br2", list)))
	for owner, name := range map[string]string{"a": "a.example", "b": "b.example"} {
		check(t, r.Admit(owner, nil, name, []dns.Told{{Addr: netip.MustParseAddr("198.51.100.9"), TTL: 300}}))
	}
	r.open(r.opt.Conns)
	r.Note("br1", list)
	r.whole(false)
	check(t, errors.Join(r.Adopt(), r.put("a", "a.example,192.0.2.1", one)))
	if !r.Lets("a", "", one.Addrs[0], netip.MustParseAddrPort("198.51.100.9:80"), 6) {
		t.Error("what the name was told is forgotten")
	}
	r.whole(true)
	check(t, r.Settle())
	for set, n := range map[string]int{setFenceNet: 1, setFence + "4": 1, setAsked + "4": 1, byNet + setAsked: 1, setToldAny + "4": 1} {
		if got := r.has(0, set); got != n {
			t.Errorf("%d elements in %s, want %d", got, set, n)
		}
	}
	for _, set := range []string{setGuarded, setStrays, setOwn + "4"} {
		if got := r.has(unix.NFPROTO_BRIDGE, set); got != 1 {
			t.Errorf("%d elements in %s of the bridge family", got, set)
		}
	}
}

// Answers for one list filled the room that all lists have, so that nobody else's names could be reached; and an answer that was under way when its list went came into the kernel after what the list
// had was taken away.
func TestToldNamesAreBounded(t *testing.T) {
	r := newRoom(t)
	one := source(1, "10.1.0.2")
	check(t, errors.Join(r.put("a", "*", one), r.put("b", "*", source(2, "10.1.0.3"))))
	tell := func(owner string, from, n int) error {
		var addrs []dns.Told
		for i := from; i < from+n; i++ {
			addrs = append(addrs, dns.Told{Addr: netip.AddrFrom4([4]byte{198, 51, byte(i >> 8), byte(i)})})
		}
		return r.Admit(owner, nil, "many.example", addrs)
	}
	for i := 0; i < maxToldEach; i += maxToldEach / 4 {
		check(t, tell("a", i, maxToldEach/4))
	}
	if err := tell("a", maxToldEach, 1); err == nil || !strings.Contains(err.Error(), "more than 8192 addresses") {
		t.Errorf("one more: %v", err)
	}
	check(t, tell("a", 0, 1)) // which is there
	check(t, tell("b", 0, 1))
	if n := r.has(0, setToldAny+"4"); n != maxToldEach+1 {
		t.Errorf("%d elements", n)
	}
	check(t, r.put("a", "", one))
	if n := r.has(0, setToldAny+"4"); n != 1 {
		t.Errorf("%d elements when the list is gone", n)
	}
	check(t, r.putTold(map[string][]nft.Elem{setToldAny + "4": {{Key: nft.Cat(one.Addrs[0].AsSlice(), []byte{198, 51, 2, 3}), Timeout: time.Minute}}}))
	if n := r.has(0, setToldAny+"4"); n != 1 {
		t.Errorf("%d elements after a late answer", n)
	}
}
