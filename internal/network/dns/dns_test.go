package dns

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
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
		p, _ := s.local(c.owner, query(t, c.name, c.typ), true)
		m := unpack(t, p)
		if m.ID != 99 || !m.Response || m.RCode != c.code || len(m.Answers) != c.answers {
			t.Errorf("%s %s %v: %v, %d answers", c.owner, c.name, c.typ, m.RCode, len(m.Answers))
		}
		p, _ = s.local(c.owner, query(t, c.name, c.typ), false)
		if cut := unpack(t, p); len(p) > 512 || c.answers == 100 && (!cut.Truncated || len(cut.Answers) != (512-22)/16) { // as many as there is room for: musl does not ask again by tcp
			t.Errorf("long answer is not cut for udp: %d bytes, %d answers, %+v", len(p), len(cut.Answers), cut.Header)
		}
	}
}

// listening is a server on udp: got has each question, and says what is sent back.
func listening(tb testing.TB, got func(q []byte, say func(p []byte))) netip.AddrPort {
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
			got(buf[:n], func(p []byte) { pc.WriteTo(p, from) })
		}
	}()
	return netip.MustParseAddrPort(pc.LocalAddr().String())
}

// upstream answers every question with one address after a while.
func upstream(tb testing.TB, wait time.Duration, addr byte, code dnsmessage.RCode) netip.AddrPort {
	tb.Helper()
	return listening(tb, func(q []byte, say func(p []byte)) {
		var m dnsmessage.Message
		if m.Unpack(q) != nil {
			return
		}
		m.Response, m.RCode = true, code
		if code == 0 {
			m.Answers = []dnsmessage.Resource{{Header: dnsmessage.ResourceHeader{Name: m.Questions[0].Name, Class: dnsmessage.ClassINET, TTL: 100}, Body: &dnsmessage.AResource{A: [4]byte{192, 0, 2, addr}}}}
		}
		p, _ := m.Pack()
		wrong := append([]byte{}, p...)
		binary.BigEndian.PutUint16(wrong, m.ID+1) // a forger who does not know the number
		say(wrong)
		time.Sleep(wait)
		say(p)
	})
}

func TestUpstreamRace(t *testing.T) {
	slow, quick, broken := upstream(t, time.Hour, 1, 0), upstream(t, 0, 2, 0), upstream(t, 0, 3, dnsmessage.RCodeServerFailure)
	dead := netip.MustParseAddrPort("127.0.0.1:1")
	for i, servers := range [][]netip.AddrPort{{slow, quick}, {broken, quick}, {dead, quick}, {quick, dead}} {
		s := serverWith(t, fixed{servers})
		p := query(t, fmt.Sprintf("x%d.example.", i), dnsmessage.TypeA)
		answer, q := s.local("a", p, false)
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
	_, q := s.local("a", p, false)
	if m := unpack(t, s.forward("a", p, q, false)); m.RCode != dnsmessage.RCodeServerFailure {
		t.Errorf("all broken: %v", m.RCode)
	}
}

func FuzzPacket(f *testing.F) {
	f.Add(query(f, "web.", dnsmessage.TypeA))
	f.Add(query(f, "2.0.0.10.in-addr.arpa.", dnsmessage.TypePTR))
	f.Add(failure(7))
	f.Add(withEDNS(f, query(f, "many.", dnsmessage.TypeALL), 700, 0, true))
	f.Add(withEDNS(f, query(f, "web.", dnsmessage.TypeA), 4096, 1, false))
	f.Add([]byte{0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xc0, 12, 0, 1, 0, 1})
	s := serverWith(f, fixed{})
	f.Fuzz(func(t *testing.T, p []byte) {
		answer, q := s.local("a", p, false)
		if answer == nil {
			return
		}
		if q != nil && len(answer) > q.limit() && q.Name.Length < 200 {
			t.Errorf("%d bytes to % x", len(answer), p)
		}
		if len(answer) < 12 || answer[2]&0x80 == 0 || answer[0] != p[0] || answer[1] != p[1] {
			t.Errorf("answer % x to % x", answer, p)
		}
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
		answer, _ := s.local("a", query(t, "many.", dnsmessage.TypeA), true)
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

// withEDNS puts an OPT record behind a question.
func withEDNS(tb testing.TB, p []byte, size uint16, version byte, secure bool) []byte {
	tb.Helper()
	opt := []byte{0, 0, 41, byte(size >> 8), byte(size), 0, version, 0, 0, 0, 0}
	if secure {
		opt[7] = 0x80
	}
	p = append(slices.Clone(p), opt...)
	p[11]++
	return p
}

// optOf finds the OPT record of an answer.
func optOf(m dnsmessage.Message) (h dnsmessage.ResourceHeader, found bool) {
	for _, r := range m.Additionals {
		if r.Header.Type == dnsmessage.TypeOPT {
			return r.Header, true
		}
	}
	return h, false
}

// RFC 6891: who sends EDNS gets EDNS back, with answers of the size that it takes; a later version than ours gets BADVERS.
func TestEDNS(t *testing.T) {
	s := serverWith(t, fixed{})
	ask := func(p []byte) (dnsmessage.Message, int) {
		t.Helper()
		answer, _ := s.local("a", p, false)
		return unpack(t, answer), len(answer)
	}
	for _, size := range []uint16{0, 512, 700, 1232, 65535} {
		limit := min(max(int(size), 512), 1232)
		m, n := ask(withEDNS(t, query(t, "many.", dnsmessage.TypeA), size, 0, true))
		h, found := optOf(m)
		if n > limit || n+16 <= limit || !m.Truncated || !found || h.Class != 1232 || !h.DNSSECAllowed() || h.TTL>>16 != 0 {
			t.Errorf("%d: %d bytes, %d answers, opt %v %+v", size, n, len(m.Answers), found, h)
		}
	}
	if m, _ := ask(withEDNS(t, query(t, "nobody.", dnsmessage.TypeA), 512, 0, false)); m.RCode != dnsmessage.RCodeNameError {
		t.Errorf("no such name: %v", m.RCode)
	} else if h, found := optOf(m); !found || h.DNSSECAllowed() {
		t.Errorf("no such name: %v %+v", found, h)
	}
	m, _ := ask(withEDNS(t, query(t, "web.", dnsmessage.TypeA), 512, 1, false))
	if h, found := optOf(m); !found || m.RCode != 0 || h.TTL>>24 != 1 || len(m.Answers) != 0 { // 16 is in two places
		t.Errorf("version 1: %v %+v %v", found, h, m.RCode)
	}
	if m, _ := ask(query(t, "web.", dnsmessage.TypeA)); len(m.Additionals) != 0 {
		t.Errorf("nobody asked for %v", m.Additionals)
	}
	twice := withEDNS(t, withEDNS(t, query(t, "web.", dnsmessage.TypeA), 512, 0, false), 512, 0, false)
	for what, p := range map[string][]byte{"two of them": twice, "one that ends early": twice[:len(twice)-3]} {
		if m, _ := ask(p); m.RCode != dnsmessage.RCodeFormatError {
			t.Errorf("%s: %v", what, m.RCode)
		}
	}
}

func TestOddQuestions(t *testing.T) {
	s := serverWith(t, fixed{upstream: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:1")}})
	answer, _ := s.local("a", query(t, "wEB.", dnsmessage.TypeALL), false)
	if m := unpack(t, answer); len(m.Answers) != 2 || m.Questions[0].Name.String() != "wEB." {
		t.Errorf("any: %+v", m)
	}
	for _, typ := range []dnsmessage.Type{251, 252} {
		answer, _ := s.local("a", query(t, "example.org.", typ), true)
		if answer == nil || unpack(t, answer).RCode != dnsmessage.RCodeRefused {
			t.Errorf("a whole zone (%d): % x", typ, answer)
		}
	}
	// A failure without the question is no answer for glibc and Go, which wait on for their whole time.
	p := query(t, "example.org.", dnsmessage.TypeA)
	_, q := s.local("a", p, false)
	if m := unpack(t, s.forward("a", p, q, false)); m.RCode != dnsmessage.RCodeServerFailure || len(m.Questions) != 1 {
		t.Errorf("nobody answers: %+v", m)
	}
	bare := func(r []byte) []byte { // a server that leaves the question out
		r[2], r[3], r[5] = 0x80, byte(dnsmessage.RCodeFormatError), 0
		return r[:12]
	}
	s = serverWith(t, fixed{upstream: []netip.AddrPort{replying(t, bare)}})
	if m := unpack(t, s.forward("a", p, q, false)); m.RCode != dnsmessage.RCodeFormatError || len(m.Questions) != 1 {
		t.Errorf("a server that leaves the question out: %+v", m)
	}
}

// replying is an upstream server that makes its answers out of the questions.
func replying(tb testing.TB, reply func(q []byte) []byte) netip.AddrPort {
	tb.Helper()
	return listening(tb, func(q []byte, say func(p []byte)) { say(reply(slices.Clone(q))) })
}

// What is kept, and for how long: the least time of a chain of aliases; for what is not there, what the SOA record says (RFC 2308); without one, not at all.
func TestWhatIsKept(t *testing.T) {
	name := dnsmessage.MustNewName
	head := func(n string, ttl uint32) dnsmessage.ResourceHeader {
		return dnsmessage.ResourceHeader{Name: name(n), Class: dnsmessage.ClassINET, TTL: ttl}
	}
	alias := func(ttl uint32) dnsmessage.Resource {
		return dnsmessage.Resource{Header: head("x.example.", ttl), Body: &dnsmessage.CNAMEResource{CNAME: name("y.example.")}}
	}
	address := dnsmessage.Resource{Header: head("y.example.", 50), Body: &dnsmessage.AResource{A: [4]byte{192, 0, 2, 1}}}
	soa := dnsmessage.Resource{Header: head("example.", 300), Body: &dnsmessage.SOAResource{NS: name("ns.example."), MBox: name("m.example."), MinTTL: 30}}
	p := query(t, "x.example.", dnsmessage.TypeA)
	q, _, _ := parse(p)
	for what, c := range map[string]struct {
		code        dnsmessage.RCode
		answers     []dnsmessage.Resource
		authorities []dnsmessage.Resource
		want        time.Duration
	}{
		"a chain":                       {0, []dnsmessage.Resource{alias(20), address}, nil, 20 * time.Second},
		"a chain, its end first":        {0, []dnsmessage.Resource{alias(70), address}, nil, 50 * time.Second},
		"no such name":                  {3, nil, []dnsmessage.Resource{soa}, 30 * time.Second},
		"no such name, behind an alias": {3, []dnsmessage.Resource{alias(70)}, []dnsmessage.Resource{soa}, 30 * time.Second},
		"no such type, behind an alias": {0, []dnsmessage.Resource{alias(70)}, []dnsmessage.Resource{soa}, 30 * time.Second},
		"no such name, without SOA":     {3, []dnsmessage.Resource{alias(70)}, nil, 0},
		"nothing":                       {0, nil, nil, 0},
		"a moment":                      {0, []dnsmessage.Resource{alias(0), address}, nil, 0},
		"a failure":                     {2, nil, []dnsmessage.Resource{soa}, 0},
	} {
		m := dnsmessage.Message{Header: dnsmessage.Header{ID: 99, Response: true, RCode: c.code}, Questions: []dnsmessage.Question{q.Question}, Answers: c.answers, Authorities: c.authorities}
		r, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		var kept cache
		kept.init()
		kept.put("k", r, q)
		e, found := kept.entries["k"]
		if got := e.expires.Sub(e.stored); found != (c.want > 0) || got != c.want {
			t.Errorf("%s: kept for %v, want %v", what, got, c.want)
		}
	}
}

// The host's file names the stub of systemd-resolved and never changes; where it really asks does, for instance when a tunnel comes up.
func TestHostFileBehindAStub(t *testing.T) {
	dir := t.TempDir()
	h := HostFile{Path: dir + "/resolv.conf", Resolved: dir + "/resolved.conf"}
	write := func(path, text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want := func(servers string) {
		t.Helper()
		conf, _, err := h.Read()
		if err != nil || strings.Join(conf.Servers, " ") != servers {
			t.Errorf("%v %v, want %s", conf, err, servers)
		}
	}
	want("")
	write(h.Path, "nameserver 127.0.0.53\n")
	want("127.0.0.53")
	write(h.Resolved, "nameserver 192.0.2.1\n")
	want("192.0.2.1")
	write(h.Resolved, "nameserver 192.0.2.1\nnameserver fe80::1%eth0\n")
	want("192.0.2.1 fe80::1%eth0")
}
