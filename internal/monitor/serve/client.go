package serve

import (
	"syscall"

	"corten.dev/corten/internal/monitor/wire"
)

// client is an attached connection.
//
//	attached ──process done──▶ finishing ──queue empty──▶ lingering ──client closed, or 2 s──▶ removed
//	   │                          │                        (sending side shut: the client has everything; what it still sends is thrown away,
//	   │ detach keys ─────────────┼───────────────────────▶  because closing with unread bytes would reset the connection under its output)
//	   └─ client gone, or stalled ┴──────────────────────────────────────────────────────────▶ removed
//
// A shared connection does not linger: the engine has more to say on it, and ends it. When there is no engine any more, the monitor says what it knows.
type client struct {
	s         *Server
	p         *process
	fd        int
	flags     uint8
	number    uint32
	owner     *engine // who asked, and is told of the end
	keys      []byte
	matched   int // how many of keys were typed
	out       queue
	since     int64 // when the client last took something, or was given something to take
	head      [8]byte
	finishing bool
	lingering bool
	noInput   bool // the client closed its sending side
	hup       bool
	told      bool
	removed   bool
}

// attach takes over a connection.
func (s *Server) attach(e *engine, p *process, fd int, a *wire.Attachment) {
	c := &client{s: s, p: p, fd: fd, flags: a.Flags, number: a.Number, owner: e}
	if p.terminal {
		c.flags &^= wire.Framed
		c.keys = append([]byte(nil), a.DetachKeys...)
	}
	syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_SNDBUF, 1<<20)
	s.clients = append(s.clients, c)
	if len(a.Preread) > 0 {
		c.typed(append([]byte(nil), a.Preread...))
	}
	if c.removed || c.lingering {
		return
	}
	if p.waitFirst != 0 {
		p.waitFirst = 0
		if p.ended {
			p.drain()
			p.release()
			return
		}
		p.flow()
	}
	if p.done {
		c.finish()
		return
	}
	c.rewatch()
}

// wantsInput reports whether the client's bytes go to the process.
func (c *client) wantsInput() bool {
	return c.flags&wire.WantStdin != 0 && c.p.in.fd >= 0 && !c.finishing && !c.lingering
}

// blocked reports whether the client's stdin has to wait for the process.
func (c *client) blocked() bool {
	if c.flags&wire.WantStdin == 0 || c.finishing || c.lingering {
		return false
	}
	return c.p.in.wait.len() > 0 || c.p.console != nil // the terminal is not there yet
}

// rewatch sets what is watched of the connection.
func (c *client) rewatch() {
	if c.removed {
		return
	}
	events := uint32(0)
	if !c.noInput && !c.blocked() {
		events |= epollIn
	}
	if c.out.len() > 0 {
		events |= epollOut
	}
	if c.hup && events == 0 {
		c.s.unwatch(c.fd)
		return
	}
	c.s.watch(c.fd, events, c)
}

func (c *client) ready(events uint32) {
	if events&epollOut != 0 {
		c.flush()
	}
	if events&epollIn != 0 && !c.removed && !c.noInput && !c.blocked() {
		c.receive()
	}
	if events&epollHup != 0 && !c.removed {
		if c.noInput || events&syscall.EPOLLERR != 0 && events&epollIn == 0 {
			c.remove()
			return
		}
		c.hup = true // what it sent before is still to be read
		c.rewatch()
	}
}

// receive reads what the client types.
func (c *client) receive() {
	n, errno := recv(c.fd, c.s.scratch[:stdinMax])
	switch {
	case errno == syscall.EAGAIN:
	case errno != 0:
		c.remove()
	case n == 0 && (c.hup || c.lingering):
		c.remove()
	case n == 0:
		c.noInput = true
		c.endInput()
		c.rewatch()
	case c.wantsInput():
		if n > 16<<10 {
			c.s.busy = monotonic()
		}
		c.typed(c.s.scratch[:n])
		c.rewatch()
	}
}

// typed passes stdin on, watching for the detach keys: a beginning of them is held back until it is clear that the rest does not follow.
func (c *client) typed(b []byte) {
	if !c.wantsInput() && c.p.console == nil {
		return
	}
	if len(c.keys) == 0 {
		c.pass(b)
		return
	}
	start := 0
	for i := 0; i < len(b); i++ {
		switch {
		case b[i] == c.keys[c.matched]:
			if c.matched == 0 {
				c.pass(b[start:i])
			}
			c.matched++
			start = i + 1
			if c.matched == len(c.keys) {
				c.detach()
				return
			}
		case c.matched > 0:
			held := c.keys[:c.matched]
			c.matched = 0
			c.pass(held)
			start = i
			i-- // it may be the first of the keys again
		}
	}
	c.pass(b[start:])
}

func (c *client) pass(b []byte) {
	if len(b) == 0 || c.flags&wire.WantStdin == 0 {
		return
	}
	if c.p.console != nil {
		c.p.in.wait.add(b) // until the terminal comes
		return
	}
	c.p.in.write(b)
}

// endInput tells the process that the client's stdin ended.
func (c *client) endInput() {
	if c.flags&wire.WantStdin != 0 && c.p.stdio&wire.StdinOnce != 0 {
		c.p.endStdin()
	}
}

// output gives the client what a stream said.
func (c *client) output(stream int, data []byte) {
	if c.removed || c.finishing || c.lingering || c.flags&(1<<stream) == 0 {
		return
	}
	head := c.head[:0]
	if c.flags&wire.Framed != 0 {
		n := len(data)
		c.head = [8]byte{byte(stream), 0, 0, 0, byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}
		head = c.head[:]
	}
	total := len(head) + len(data)
	n := 0
	if c.out.len() == 0 {
		var errno syscall.Errno
		n, errno = c.s.send.send(c.fd, head, data)
		if errno == syscall.EAGAIN {
			n = 0
		} else if errno != 0 {
			c.broken()
			return
		}
		if n == total {
			return
		}
		c.since = monotonic()
	} else if c.s.nonblock && c.out.len()+total > queueMax {
		return
	}
	if n < len(head) {
		c.out.add(head[n:])
		n = 0
	} else {
		n -= len(head)
	}
	c.out.add(data[n:])
	c.rewatch()
	if c.out.len() > pauseAt && !c.p.paused && !c.p.done {
		c.p.flow()
	}
}

// flush sends what waits.
func (c *client) flush() {
	for c.out.len() > 0 {
		n, errno := c.s.send.send(c.fd, nil, c.out.bytes())
		if errno == syscall.EAGAIN {
			break
		}
		if errno != 0 {
			c.broken()
			return
		}
		c.out.drop(n)
		c.since = monotonic()
	}
	if c.p.paused && c.out.len() < pauseAt/2 {
		c.p.flow()
	}
	if c.finishing && c.out.len() == 0 {
		c.linger()
		return
	}
	c.rewatch()
}

// broken is for a client that cannot be sent to: what it sent before it left still counts.
func (c *client) broken() {
	c.out.free()
	c.flags &^= wire.WantStdout | wire.WantStderr
	c.p.flow()
	if c.flags&wire.WantStdin == 0 || c.noInput || c.finishing {
		c.remove()
		return
	}
	c.hup = true
	c.rewatch()
}

// finish is called when the process's output is complete.
func (c *client) finish() {
	if c.removed || c.lingering {
		return
	}
	c.finishing = true
	if c.out.len() == 0 {
		c.linger()
		return
	}
	c.rewatch()
}

// detach ends the attachment at the client's wish; the process goes on.
func (c *client) detach() {
	c.tellEnd(wire.Detached)
	c.linger()
}

func (c *client) linger() {
	c.lingering, c.finishing = true, false
	c.out.free()
	if c.flags&wire.Shared != 0 {
		c.lastWord()
		c.remove()
		return
	}
	c.since = monotonic()
	syscall.Shutdown(c.fd, syscall.SHUT_WR)
	c.tellEnd(0)
	if c.noInput || c.hup {
		c.remove()
		return
	}
	for {
		n, errno := recv(c.fd, c.s.scratch[:stdinMax])
		if errno == syscall.EAGAIN {
			break
		}
		if n <= 0 || errno != 0 {
			c.remove()
			return
		}
	}
	c.p.flow()
	c.rewatch()
}

// lastWord tells a client whose engine is gone how its process ended, in the engine's words (package runwire): stream 4, JSON. The client has read everything else, or will: a few bytes
// that its socket does not take are not worth waiting for.
func (c *client) lastWord() {
	if c.owner != nil || c.flags&wire.Framed == 0 || !c.p.ended {
		return
	}
	code, word := c.p.exit.Code, []byte(`{"Code":`)
	if code >= 100 {
		word = append(word, '0'+code/100)
	}
	if code >= 10 {
		word = append(word, '0'+code/10%10)
	}
	word = append(word, '0'+code%10, '}')
	c.s.send.send(c.fd, []byte{4, 0, 0, 0, 0, 0, 0, byte(len(word))}, word)
}

func (c *client) tellEnd(how uint8) {
	if !c.told {
		c.told = true
		c.owner.tell(&wire.Message{Kind: wire.Ended, Number: c.number, Exit: how}, -1)
	}
}

// remove forgets the client.
func (c *client) remove() {
	if c.removed {
		return
	}
	c.removed = true
	c.tellEnd(0)
	c.out.free()
	c.s.close(c.fd)
	for i, x := range c.s.clients {
		if x == c {
			c.s.clients = append(c.s.clients[:i], c.s.clients[i+1:]...)
			break
		}
	}
	if !c.noInput && !c.lingering {
		c.endInput()
	}
	c.p.flow()
}

// tend cuts off a client that takes nothing; it reports whether time matters to the client.
func (c *client) tend(now int64) bool {
	if c.out.len() > 0 {
		if now-c.since > stallLimit {
			c.remove()
			return false
		}
		return true
	}
	if c.lingering {
		if now-c.since > lingerLimit {
			c.remove()
			return false
		}
		return true
	}
	return false
}
