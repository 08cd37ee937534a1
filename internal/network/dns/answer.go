package dns

import (
	"encoding/hex"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/net/dns/dnsmessage"
)

// ttl of our own answers, as Docker's.
const ttl = 600

// question is the one question of a packet.
type question struct {
	id   uint16
	head dnsmessage.Header
	dnsmessage.Question
	name string // lower case, without the last dot
	end  int    // where the question section ends in the packet
	edns *edns  // nil: who asks knows nothing of it
}

// edns is what the OPT record of a question says (RFC 6891).
type edns struct {
	size    int // of the longest answer that is taken by udp
	version byte
	secure  bool // DO: with signatures, where there are some
}

// What we can: version 0, and answers of a size that every path carries in one piece.
const (
	ednsSize = 1232
	plain    = 512
	badVers  = dnsmessage.RCode(16)
)

// limit is how long an answer by udp can be.
func (q *question) limit() int {
	if q.edns == nil {
		return plain
	}
	return min(max(q.edns.size, plain), ednsSize)
}

// readEDNS finds the OPT record behind the question.
func (q *question) readEDNS(parser *dnsmessage.Parser) dnsmessage.RCode {
	if parser.SkipAllAnswers() != nil || parser.SkipAllAuthorities() != nil {
		return dnsmessage.RCodeFormatError
	}
	for {
		h, err := parser.AdditionalHeader()
		if err == dnsmessage.ErrSectionDone {
			break
		}
		if err != nil || h.Type == dnsmessage.TypeOPT && (q.edns != nil || h.Name.String() != ".") || parser.SkipAdditional() != nil {
			return dnsmessage.RCodeFormatError
		}
		if h.Type == dnsmessage.TypeOPT {
			q.edns = &edns{size: int(h.Class), version: byte(h.TTL >> 16), secure: h.DNSSECAllowed()}
		}
	}
	if q.edns != nil && q.edns.version > 0 {
		return badVers
	}
	return 0
}

// parse reads the header and the question. ok is false for what is no question at all; a question we do not understand gets a refusal in err.
func parse(p []byte) (q *question, refusal dnsmessage.RCode, ok bool) {
	var parser dnsmessage.Parser
	head, err := parser.Start(p)
	if err != nil || head.Response {
		return nil, 0, false
	}
	q = &question{id: head.ID, head: head}
	if head.OpCode != 0 {
		return q, dnsmessage.RCodeNotImplemented, true
	}
	if q.Question, err = parser.Question(); err != nil {
		return q, dnsmessage.RCodeFormatError, true
	}
	if _, err = parser.Question(); err != dnsmessage.ErrSectionDone {
		return q, dnsmessage.RCodeFormatError, true
	}
	q.end = 12 + nameLen(p[12:]) + 4
	if q.end > len(p) {
		return q, dnsmessage.RCodeFormatError, true
	}
	q.name = strings.ToLower(strings.TrimSuffix(q.Name.String(), "."))
	if refusal := q.readEDNS(&parser); refusal != 0 {
		return q, refusal, true
	}
	if q.Type == typeAXFR || q.Type == typeIXFR { // whole zones, in any number of packets
		return q, dnsmessage.RCodeRefused, true
	}
	return q, 0, true
}

const (
	typeIXFR = dnsmessage.Type(251)
	typeAXFR = dnsmessage.TypeAXFR
)

// local answers from the directory. A nil answer with a question is one for upstream; nil and nil is no question.
func (s *Server) local(owner string, p []byte, stream bool) (answer []byte, q *question) {
	q, refusal, ok := parse(p)
	if !ok {
		return nil, nil
	}
	if refusal != 0 {
		return build(q, refusal, nil), q
	}
	if q.Class != dnsmessage.ClassINET {
		return s.orForward(owner, q)
	}
	if q.Type == dnsmessage.TypePTR {
		if addr, ok := reverseAddr(q.name); ok {
			if name, found := s.dir.Reverse(owner, addr); found {
				return build(q, 0, func(b *dnsmessage.Builder, h dnsmessage.ResourceHeader) error {
					n, err := dnsmessage.NewName(strings.TrimSuffix(name, ".") + ".")
					if err != nil {
						return err
					}
					return b.PTRResource(h, dnsmessage.PTRResource{PTR: n})
				}), q
			}
		}
		return s.orForward(owner, q)
	}
	addrs, found := s.dir.Lookup(owner, q.name)
	if !found {
		return s.orForward(owner, q)
	}
	rand.Shuffle(len(addrs), func(i, j int) { addrs[i], addrs[j] = addrs[j], addrs[i] })
	return addresses4And6(q, addrs, stream), q
}

// addresses4And6 answers with those addresses that were asked for. By udp that may be only some of them, and says so: who wants all asks again by tcp, and who cannot has some.
func addresses4And6(q *question, addrs []netip.Addr, stream bool) []byte {
	addrs = slices.DeleteFunc(addrs, func(a netip.Addr) bool {
		return q.Type != dnsmessage.TypeALL && (a.Is4() && q.Type != dnsmessage.TypeA || a.Is6() && q.Type != dnsmessage.TypeAAAA)
	})
	for n := len(addrs); ; n-- {
		answer := build(q, 0, func(b *dnsmessage.Builder, h dnsmessage.ResourceHeader) (err error) {
			for i := 0; i < n && err == nil; i++ {
				if addrs[i].Is4() {
					err = b.AResource(h, dnsmessage.AResource{A: addrs[i].As4()})
				} else {
					err = b.AAAAResource(h, dnsmessage.AAAAResource{AAAA: addrs[i].As16()})
				}
			}
			return err
		})
		if over := len(answer) - q.limit(); over > 0 && !stream && n > 0 {
			n -= (over - 1) / 28 // each record has 28 bytes at most
			continue
		}
		if n < len(addrs) {
			answer[2] |= 2 // truncated
		}
		return answer
	}
}

// orForward says that upstream is to be asked, or "no such name" where nobody may be.
func (s *Server) orForward(owner string, q *question) ([]byte, *question) {
	if servers, ok := s.dir.Upstreams(owner); !ok || len(servers) == 0 {
		return build(q, dnsmessage.RCodeNameError, nil), q
	}
	if keeper, is := s.dir.(Keeper); is {
		if _, ok := keeper.Listed(owner, q.name); !ok {
			keeper.Refused(owner, q.name)
			return build(q, dnsmessage.RCodeNameError, nil), q
		}
	}
	return nil, q
}

// build makes an answer; one that cannot be made is a server failure.
func build(q *question, code dnsmessage.RCode, fill func(*dnsmessage.Builder, dnsmessage.ResourceHeader) error) []byte {
	h := dnsmessage.Header{ID: q.id, Response: true, RecursionDesired: q.head.RecursionDesired, RecursionAvailable: true, RCode: code & 0xf, OpCode: q.head.OpCode}
	b := dnsmessage.NewBuilder(make([]byte, 0, 256), h)
	b.EnableCompression()
	if q.Name.Length > 0 {
		if b.StartQuestions() != nil || b.Question(q.Question) != nil {
			return failure(q.id)
		}
	}
	if fill != nil {
		if b.StartAnswers() != nil || fill(&b, dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET, TTL: ttl}) != nil {
			return failure(q.id)
		}
	}
	if q.edns != nil {
		var h dnsmessage.ResourceHeader
		if h.SetEDNS0(ednsSize, code, q.edns.secure) != nil || b.StartAdditionals() != nil || b.OPTResource(h, dnsmessage.OPTResource{}) != nil {
			return failure(q.id)
		}
	}
	p, err := b.Finish()
	if err != nil {
		return failure(q.id)
	}
	return p
}

// failed is a server failure, with the question: resolvers wait on when that is missing.
func (q *question) failed() []byte { return build(q, dnsmessage.RCodeServerFailure, nil) }

// failure is the least answer there is.
func failure(id uint16) []byte {
	return []byte{byte(id >> 8), byte(id), 0x80, 0x80 | byte(dnsmessage.RCodeServerFailure), 0, 0, 0, 0, 0, 0, 0, 0}
}

// reverseAddr reads 4.3.2.1.in-addr.arpa and the IPv6 form.
func reverseAddr(name string) (netip.Addr, bool) {
	if rest, ok := strings.CutSuffix(name, ".in-addr.arpa"); ok {
		f := strings.Split(rest, ".")
		if len(f) != 4 {
			return netip.Addr{}, false
		}
		var raw [4]byte
		for i, s := range f {
			v, err := strconv.ParseUint(s, 10, 8)
			if err != nil {
				return netip.Addr{}, false
			}
			raw[3-i] = byte(v)
		}
		return netip.AddrFrom4(raw), true
	}
	if rest, ok := strings.CutSuffix(name, ".ip6.arpa"); ok && len(rest) == 63 {
		var digits [32]byte
		for i := range 32 {
			digits[31-i] = rest[2*i]
			if i < 31 && rest[2*i+1] != '.' {
				return netip.Addr{}, false
			}
		}
		var raw [16]byte
		if _, err := hex.Decode(raw[:], digits[:]); err == nil {
			return netip.AddrFrom16(raw), true
		}
	}
	return netip.Addr{}, false
}

// nameLen is the length of an uncompressed name in a packet.
func nameLen(p []byte) int {
	n := 0
	for n < len(p) && p[n] != 0 {
		if p[n]&0xc0 != 0 {
			return n + 2
		}
		n += int(p[n]) + 1
	}
	return n + 1
}
