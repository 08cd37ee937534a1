package nft

import (
	"errors"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// ownNamespace puts the test's thread into a network namespace of its own, which ends with it.
func ownNamespace(tb testing.TB) *Conns {
	tb.Helper()
	if os.Getuid() != 0 {
		tb.Skip("needs root")
	}
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		tb.Skip(err)
	}
	c := NewConns()
	tb.Cleanup(func() {
		if err := c.Close(); err != nil {
			tb.Error(err)
		}
	})
	return c
}

func table(tx *Tx) {
	tx.AddTable("t")
	tx.AddSet("t", Set{Name: "ports", Key: []Type{Proto, Service}, Data: []Type{IPv4, Service}})
	tx.AddChain("t", Chain{Name: "own"})
	tx.AddChain("t", Chain{Name: "pre", Type: "nat", Hook: unix.NF_INET_PRE_ROUTING, Priority: -100})
}

func elem(port uint16) []Elem {
	return []Elem{{Key: Cat([]byte{unix.IPPROTO_TCP}, Port(port)), Data: Cat([]byte{10, 0, 0, 1}, Port(80))}}
}

// The judge is nft itself: it must read what we wrote as what we meant.
func TestListingByNft(t *testing.T) {
	c := ownNamespace(t)
	tx := &Tx{}
	table(tx)
	tx.AddElems("t", "ports", elem(8080))
	tx.AddRule("t", "pre", "why", Meta(unix.NFT_META_NFPROTO, R(0)), Cmp(R(0), []byte{unix.NFPROTO_IPV4}, false), Meta(unix.NFT_META_L4PROTO, R(0)),
		Payload(unix.NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2, R(1)), Map("ports", R(0), R(0)), DNAT(unix.NFPROTO_IPV4, R(0), R(1)))
	tx.AddRule("t", "own", "", Jump("pre")) // refused: a base chain
	if err := c.Commit(tx); !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EINVAL) {
		t.Fatalf("jump to a base chain: %v", err)
	}
	if found, err := c.HasRules("t", "pre"); found || err != nil {
		t.Errorf("a refused transaction left rules: %v %v", found, err)
	}
	tx = &Tx{}
	table(tx)
	tx.AddElems("t", "ports", elem(8080))
	tx.AddRule("t", "pre", "why", Meta(unix.NFT_META_NFPROTO, R(0)), Cmp(R(0), []byte{unix.NFPROTO_IPV4}, false), Meta(unix.NFT_META_L4PROTO, R(0)),
		Payload(unix.NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2, R(1)), Map("ports", R(0), R(0)), DNAT(unix.NFPROTO_IPV4, R(0), R(1)))
	if err := c.Commit(tx); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("nft", "list", "table", "inet", "t").CombinedOutput()
	if err != nil {
		t.Skipf("no nft program to judge: %v %s", err, out)
	}
	for _, want := range []string{"type inet_proto . inet_service : ipv4_addr . inet_service", "tcp . 8080 : 10.0.0.1 . 80", "dnat ip to meta l4proto . th dport map @ports", `comment "why"`} {
		if !strings.Contains(string(out), want) {
			t.Errorf("listing lacks %q:\n%s", want, out)
		}
	}
}

func TestElements(t *testing.T) {
	c := ownNamespace(t)
	tx := &Tx{}
	table(tx)
	if err := c.Commit(tx); err != nil {
		t.Fatal(err)
	}
	commit := func(fill func(*Tx)) error {
		tx := &Tx{}
		fill(tx)
		return c.Commit(tx)
	}
	var many []Elem
	for p := range 3000 {
		many = append(many, elem(uint16(p+1))...)
	}
	if err := commit(func(tx *Tx) { tx.AddElems("t", "ports", many) }); err != nil {
		t.Fatal(err)
	}
	if err := commit(func(tx *Tx) { tx.AddElems("t", "ports", elem(1)) }); err != nil {
		t.Errorf("the same again: %v", err)
	}
	if err := commit(func(tx *Tx) { tx.DelElems("t", "ports", many) }); err != nil {
		t.Fatal(err)
	}
	if err := commit(func(tx *Tx) { tx.DelElems("t", "ports", elem(1)) }); !errors.Is(err, unix.ENOENT) {
		t.Errorf("delete what is not there: %v", err)
	}
}

// Elements with long notes must not fill a message beyond what its length can say.
func TestNotes(t *testing.T) {
	c := ownNamespace(t)
	tx := &Tx{}
	tx.AddTable("t")
	tx.AddSet("t", Set{Name: "s", Key: []Type{Service}, Timeout: true})
	note := strings.Repeat("n", maxNote)
	var many []Elem
	for p := range 1000 {
		many = append(many, Elem{Key: Port(uint16(p + 1)), Note: note, Timeout: time.Hour})
	}
	tx.AddElems("t", "s", many)
	if err := c.Commit(tx); err != nil {
		t.Fatal(err)
	}
	got, err := c.Elems(0, "t", "s")
	if err != nil || len(got) != len(many) {
		t.Fatalf("%d elements, %v", len(got), err)
	}
	for _, e := range got {
		if e.Note != note || e.Timeout <= 0 {
			t.Fatalf("%+v", e)
		}
	}
	tx = &Tx{}
	tx.AddElems("t", "s", []Elem{{Key: Port(2000), Note: note + "n", Timeout: time.Hour}})
	if err := c.Commit(tx); err != nil {
		t.Errorf("a longer one: %v", err)
	}
	for _, bad := range [][]byte{nil, {0}, {0, 5, 'a'}, {1, 1, 'a'}, {1, 200}} {
		if s := readComment(bad); s != "" {
			t.Errorf("%v: %q", bad, s)
		}
	}
}

func BenchmarkElement(b *testing.B) {
	c := ownNamespace(b)
	tx := &Tx{}
	table(tx)
	if err := c.Commit(tx); err != nil {
		b.Fatal(err)
	}
	for range b.N {
		for _, del := range []bool{false, true} {
			tx := &Tx{}
			if del {
				tx.DelElems("t", "ports", elem(80))
			} else {
				tx.AddElems("t", "ports", elem(80))
			}
			if err := c.Commit(tx); err != nil {
				b.Fatal(err)
			}
		}
	}
}
