package dns

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

const (
	patience = 400 * time.Millisecond // before the next server joins the race
	giveUp   = 5 * time.Second
	maxTTL   = 10 * time.Minute // what is kept longest
	maxCache = 2048
)

// forward asks upstream, and has the owner reach what it is told if its egress list says so.
func (s *Server) forward(owner string, p []byte, q *question, stream bool) []byte {
	return s.admit(owner, s.upstream(owner, p, q, stream), q)
}

// upstream asks the owner's upstream servers.
func (s *Server) upstream(owner string, p []byte, q *question, stream bool) []byte {
	servers, ok := s.dir.Upstreams(owner)
	if !ok || len(servers) == 0 {
		return q.failed()
	}
	key := cacheKey(servers, p, q, stream)
	if answer := s.cache.get(key, p, q); answer != nil {
		return answer
	}
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	default:
		return q.failed()
	}
	ctx, cancel := context.WithTimeout(context.Background(), giveUp)
	defer cancel()
	dial := func(ctx context.Context, network string, server netip.AddrPort) (net.Conn, error) {
		return s.dir.Dial(ctx, owner, network, server)
	}
	answer, err := race(ctx, servers, func(ctx context.Context, server netip.AddrPort) ([]byte, error) {
		return exchange(ctx, dial, server, p, q, stream)
	})
	if err != nil {
		s.log.Debug("no answer from upstream", "name", q.name, "err", err)
		return q.failed()
	}
	if binary.BigEndian.Uint16(answer[4:]) == 0 {
		return build(q, dnsmessage.RCode(answer[3]&0xf), nil)
	}
	s.cache.put(key, answer, q)
	return answer
}

// race asks the servers one after the other, the next one after a little patience or at once when one failed; the first good answer counts. A
// server that answers "server failure" or "refused" is believed only when no other says better.
func race(ctx context.Context, servers []netip.AddrPort, ask func(context.Context, netip.AddrPort) ([]byte, error)) ([]byte, error) {
	type result struct {
		answer []byte
		err    error
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	results := make(chan result, len(servers))
	var worst result
	next, running := 0, 0
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		if next == len(servers) && running == 0 {
			if worst.answer != nil {
				return worst.answer, nil
			}
			return nil, worst.err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-timer.C:
			if next < len(servers) {
				server := servers[next]
				next++
				running++
				go func() {
					answer, err := ask(ctx, server)
					results <- result{answer, err}
				}()
				timer.Reset(patience)
			}
		case r := <-results:
			running--
			if r.err == nil && r.answer[3]&0xf != 2 && r.answer[3]&0xf != 5 {
				return r.answer, nil
			}
			if r.answer != nil || worst.answer == nil {
				worst = r
			}
			timer.Reset(0)
		}
	}
}

type dialer func(ctx context.Context, network string, server netip.AddrPort) (net.Conn, error)

// exchange asks one server, by a socket of its own with a number of its own, and takes only the answer to this very question.
func exchange(ctx context.Context, dial dialer, server netip.AddrPort, p []byte, q *question, stream bool) ([]byte, error) {
	network := "udp"
	if stream {
		network = "tcp"
	}
	conn, err := dial(ctx, network, server)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	ask := append([]byte{}, p...)
	id := uint16(rand.Uint32())
	binary.BigEndian.PutUint16(ask, id)
	if stream {
		if err := writeFrame(conn, ask); err != nil {
			return nil, err
		}
		answer, err := readFrame(conn)
		if err != nil {
			return nil, err
		}
		if !answers(answer, id, p, q) {
			return nil, errors.New("answer to another question")
		}
		binary.BigEndian.PutUint16(answer, q.id)
		return answer, nil
	}
	if _, err := conn.Write(ask); err != nil {
		return nil, err
	}
	buf := make([]byte, 65535)
	for {
		n, err := conn.Read(buf)
		if err != nil {
			return nil, err
		}
		if answers(buf[:n], id, p, q) {
			answer := append([]byte{}, buf[:n]...)
			binary.BigEndian.PutUint16(answer, q.id)
			return answer, nil
		}
	}
}

// answers says whether r is an answer to the question in p that was asked under the number.
func answers(r []byte, id uint16, p []byte, q *question) bool {
	if len(r) < 12 || binary.BigEndian.Uint16(r) != id || r[2]&0x80 == 0 {
		return false
	}
	if binary.BigEndian.Uint16(r[4:]) == 0 { // some failures come without the question
		return r[3]&0xf != 0
	}
	return len(r) >= q.end && bytes.EqualFold(r[12:q.end], p[12:q.end])
}

// cache keeps answers of upstream servers as long as they say, at most maxTTL.
type cache struct {
	mu      sync.Mutex
	entries map[string]entry
}

type entry struct {
	answer  []byte
	ttls    []int // where the ttl fields are
	stored  time.Time
	expires time.Time
}

func (c *cache) init() { c.entries = map[string]entry{} }

// cacheKey is everything that may change the answer: whom we ask, the flags, the question, what follows it (EDNS), and the way.
func cacheKey(servers []netip.AddrPort, p []byte, q *question, stream bool) string {
	var b bytes.Buffer
	for _, s := range servers {
		b.WriteString(s.String())
		b.WriteByte(' ')
	}
	b.Write(p[2:4])
	b.Write(bytes.ToLower(p[12:q.end]))
	b.Write(p[q.end:])
	if stream {
		b.WriteByte('t')
	}
	return b.String()
}

func (c *cache) get(key string, p []byte, q *question) []byte {
	c.mu.Lock()
	e, ok := c.entries[key]
	c.mu.Unlock()
	now := time.Now()
	if !ok || now.After(e.expires) {
		return nil
	}
	answer := append([]byte{}, e.answer...)
	age := uint32(now.Sub(e.stored) / time.Second)
	for _, at := range e.ttls {
		left := binary.BigEndian.Uint32(answer[at:])
		binary.BigEndian.PutUint32(answer[at:], left-min(left, age))
	}
	binary.BigEndian.PutUint16(answer, q.id)
	copy(answer[12:q.end], p[12:q.end]) // in the letters that were asked with
	return answer
}

func (c *cache) put(key string, answer []byte, q *question) {
	code := answer[3] & 0xf
	if code != 0 && code != 3 || answer[2]&2 != 0 || binary.BigEndian.Uint16(answer[4:]) != 1 {
		return // failures and cut answers are not kept
	}
	ttls, least, ok := walkTTLs(answer, q.end)
	if !ok || least == 0 { // or one that says no more than that there is nothing, and not for how long
		return
	}
	now := time.Now()
	e := entry{answer: append([]byte{}, answer...), ttls: ttls, stored: now, expires: now.Add(min(time.Duration(least)*time.Second, maxTTL))}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.entries) >= maxCache {
		n := 0
		for k, old := range c.entries {
			if now.After(old.expires) || n < maxCache/8 {
				delete(c.entries, k)
			}
			n++
		}
	}
	c.entries[key] = e
}

// walkTTLs finds the ttl fields of the records that begin at from, and the least ttl. What is not there, be it at the end of a chain of aliases, is so for as long as its SOA record says;
// without one it is not kept (RFC 2308).
func walkTTLs(p []byte, from int) (ttls []int, least uint32, ok bool) {
	if len(p) < 12 || from > len(p) {
		return nil, 0, false
	}
	answers := int(binary.BigEndian.Uint16(p[6:]))
	records := answers + int(binary.BigEndian.Uint16(p[8:])) + int(binary.BigEndian.Uint16(p[10:]))
	least = ^uint32(0)
	nothing, told := p[3]&0xf == 3 || answers == 0, false
	at := from
	for i := range records {
		if at > len(p) {
			return nil, 0, false
		}
		at += nameLen(p[at:])
		if at+10 > len(p) {
			return nil, 0, false
		}
		typ, size := binary.BigEndian.Uint16(p[at:]), int(binary.BigEndian.Uint16(p[at+8:]))
		end := at + 10 + size
		if end > len(p) {
			return nil, 0, false
		}
		if typ != 41 { // EDNS has flags there
			ttls = append(ttls, at+4)
			least = min(least, binary.BigEndian.Uint32(p[at+4:]))
			if typ == 6 && i >= answers && size >= 22 { // SOA beside the answer: the last number is for what is not there
				least, told = min(least, binary.BigEndian.Uint32(p[end-4:])), true
			}
		}
		at = end
	}
	if len(ttls) == 0 || nothing && !told {
		return nil, 0, false
	}
	return ttls, least, true
}
