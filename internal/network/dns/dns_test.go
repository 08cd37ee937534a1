package dns

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// fixed is a directory with two names on one owner's network.
type fixed struct{ upstream []netip.AddrPort }

func (b fixed) Lookup(owner, name string) ([]netip.Addr, bool) {
	switch {
	case owner == "a" && name == "web":
		return []netip.Addr{netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("fd00::2")}, true
	case owner == "a" && name == "many":
		var all []netip.Addr
		for i := range 100 {
			all = append(all, netip.AddrFrom4([4]byte{10, 0, 1, byte(i)}))
		}
		return all, true
	}
	return nil, false
}

func (b fixed) Reverse(owner string, a netip.Addr) (string, bool) {
	return "web.blue", owner == "a" && (a == netip.MustParseAddr("10.0.0.2") || a == netip.MustParseAddr("fd00::2"))
}

func (b fixed) Upstreams(string) ([]netip.AddrPort, bool) { return b.upstream, len(b.upstream) > 0 }

func (b fixed) Dial(ctx context.Context, _, network string, server netip.AddrPort) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, network, server.String())
}

func serverWith(tb testing.TB, dir Directory) *Server {
	tb.Helper()
	s, err := New(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := s.Close(); err != nil {
			tb.Error(err)
		}
	})
	return s
}

func query(tb testing.TB, name string, typ dnsmessage.Type) []byte {
	tb.Helper()
	m := dnsmessage.Message{Header: dnsmessage.Header{ID: 99, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: typ, Class: dnsmessage.ClassINET}}}
	p, err := m.Pack()
	if err != nil {
		tb.Fatal(err)
	}
	return p
}

func unpack(tb testing.TB, p []byte) dnsmessage.Message {
	tb.Helper()
	var m dnsmessage.Message
	if err := m.Unpack(p); err != nil {
		tb.Fatalf("%v in % x", err, p)
	}
	return m
}

func TestAnswersOfTheDirectory(t *testing.T) {
	s := serverWith(t, fixed{})
	for _, c := range []struct {
		owner, name string
		typ         dnsmessage.Type
		code        dnsmessage.RCode
		answers     int
	}{
		{"a", "web.", dnsmessage.TypeA, 0, 1},
		{"a", "WEB.", dnsmessage.TypeAAAA, 0, 1},
		{"a", "web.", dnsmessage.TypeTXT, 0, 0},
		{"a", "many.", dnsmessage.TypeA, 0, 100},
		{"a", "2.0.0.10.in-addr.arpa.", dnsmessage.TypePTR, 0, 1},
		{"a", "2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa.", dnsmessage.TypePTR, 0, 1},
		{"a", "x.0.0.10.in-addr.arpa.", dnsmessage.TypePTR, dnsmessage.RCodeNameError, 0},
		{"b", "web.", dnsmessage.TypeA, dnsmessage.RCodeNameError, 0},
	} {
		p, q := s.local(c.owner, query(t, c.name, c.typ))
		m := unpack(t, p)
		if m.ID != 99 || !m.Response || m.RCode != c.code || len(m.Answers) != c.answers {
			t.Errorf("%s %s %v: %v, %d answers", c.owner, c.name, c.typ, m.RCode, len(m.Answers))
		}
		if cut := unpack(t, fit(p, query(t, c.name, c.typ), q)); c.answers == 100 && (!cut.Truncated || len(cut.Answers) != 0) {
			t.Errorf("long answer is not cut for udp: %+v", cut.Header)
		}
	}
}

// upstream answers every question with one address after a while; calls counts.
func upstream(tb testing.TB, wait time.Duration, addr byte, code dnsmessage.RCode) netip.AddrPort {
	tb.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { pc.Close() })
	go func() {
		buf := make([]byte, 1500)
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(buf[:n]) != nil {
				continue
			}
			m.Response, m.RCode = true, code
			if code == 0 {
				m.Answers = []dnsmessage.Resource{{Header: dnsmessage.ResourceHeader{Name: m.Questions[0].Name, Class: dnsmessage.ClassINET, TTL: 100}, Body: &dnsmessage.AResource{A: [4]byte{192, 0, 2, addr}}}}
			}
			p, _ := m.Pack()
			wrong := append([]byte{}, p...)
			binary.BigEndian.PutUint16(wrong, m.ID+1) // a forger who does not know the number
			pc.WriteTo(wrong, from)
			time.Sleep(wait)
			pc.WriteTo(p, from)
		}
	}()
	return netip.MustParseAddrPort(pc.LocalAddr().String())
}

func TestUpstreamRace(t *testing.T) {
	slow, quick, broken := upstream(t, time.Hour, 1, 0), upstream(t, 0, 2, 0), upstream(t, 0, 3, dnsmessage.RCodeServerFailure)
	dead := netip.MustParseAddrPort("127.0.0.1:1")
	for i, servers := range [][]netip.AddrPort{{slow, quick}, {broken, quick}, {dead, quick}, {quick, dead}} {
		s := serverWith(t, fixed{servers})
		p := query(t, fmt.Sprintf("x%d.example.", i), dnsmessage.TypeA)
		answer, q := s.local("a", p)
		if answer != nil {
			t.Fatal("answered without asking")
		}
		m := unpack(t, s.forward("a", p, q, false))
		if len(m.Answers) != 1 || m.Answers[0].Body.(*dnsmessage.AResource).A[3] != 2 || m.ID != 99 {
			t.Errorf("%d: %+v", i, m)
		}
	}
	s := serverWith(t, fixed{[]netip.AddrPort{broken, dead}})
	p := query(t, "y.example.", dnsmessage.TypeA)
	_, q := s.local("a", p)
	if m := unpack(t, s.forward("a", p, q, false)); m.RCode != dnsmessage.RCodeServerFailure {
		t.Errorf("all broken: %v", m.RCode)
	}
}

func FuzzPacket(f *testing.F) {
	f.Add(query(f, "web.", dnsmessage.TypeA))
	f.Add(query(f, "2.0.0.10.in-addr.arpa.", dnsmessage.TypePTR))
	f.Add(failure(7))
	f.Add([]byte{0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xc0, 12, 0, 1, 0, 1})
	s := serverWith(f, fixed{})
	f.Fuzz(func(t *testing.T, p []byte) {
		answer, q := s.local("a", p)
		if answer == nil {
			return
		}
		if len(answer) < 12 || answer[2]&0x80 == 0 || answer[0] != p[0] || answer[1] != p[1] {
			t.Errorf("answer % x to % x", answer, p)
		}
		fit(answer, p, q)
	})
}

func FuzzUpstreamAnswer(f *testing.F) {
	p := query(f, "web.", dnsmessage.TypeA)
	q, _, _ := parse(p)
	f.Add(build(q, 0, nil))
	f.Fuzz(func(t *testing.T, r []byte) {
		if !answers(r, 99, p, q) {
			return
		}
		for _, told := range addresses(r, q.end) {
			if !told.Addr.IsValid() {
				t.Errorf("% x tells no address", r)
			}
		}
		var c cache
		c.init()
		c.put("k", r, q)
		if got := c.get("k", p, q); got != nil && len(got) != len(r) {
			t.Errorf("kept % x gave % x", r, got)
		}
	})
}

func FuzzResolvConf(f *testing.F) {
	f.Add([]byte("nameserver 1.2.3.4\nsearch a b\noptions ndots:2 # no\n"))
	f.Fuzz(func(t *testing.T, p []byte) {
		r := ParseResolvConf(p)
		again := ParseResolvConf(r.Format())
		if strings.Join(again.Servers, " ") != strings.Join(r.Servers, " ") {
			t.Errorf("%q: %v became %v", p, r, again)
		}
	})
}

// Several addresses of one name come in another order each time.
func TestRoundRobin(t *testing.T) {
	s := serverWith(t, fixed{})
	first := map[string]bool{}
	for range 50 { // of 100 addresses
		answer, _ := s.local("a", query(t, "many.", dnsmessage.TypeA))
		first[unpack(t, answer).Answers[0].Body.GoString()] = true
	}
	if len(first) < 2 {
		t.Error("the same one is always the first")
	}
}

func TestMatch(t *testing.T) {
	for _, c := range []struct {
		pattern, name string
		want          bool
	}{{"a.org", "a.org", true}, {"a.org", "x.a.org", false}, {"*.a.org", "x.a.org", true}, {"*.a.org", "y.x.a.org", true}, {"*.a.org", "a.org", false}, {"*.a.org", "ba.org", false}, {"*.a.org", ".a.org", false}, {"*", "any", true}} {
		if got := Match(c.pattern, c.name); got != c.want {
			t.Errorf("%s %s: %v", c.pattern, c.name, got)
		}
	}
}
