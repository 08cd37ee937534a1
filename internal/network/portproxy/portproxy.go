// Package portproxy passes on what the kernel's rules cannot: connections to published ports on [::1], on IPv6 addresses for containers that have
// only IPv4 ones, and from containers of a network whose containers do not reach each other.
//
// It is one small process for all ports of an engine, started with the first such port. It owns the listening sockets that the engine hands it, and
// nothing else; it outlives the engine, and ends when it has no port left and no engine is connected. It promises: an engine that comes back learns
// what is held; a port that was dropped is free when the answer arrives; one client's slowness holds up no other.
//
// The engine opens the control socket (a unix socket of packets) and hands it as descriptor 3. Each request is one packet, answered by one:
//
//	engine                                     proxy
//	{"op":"add","key":…,"to":…} + descriptor ─▶ listens           ─▶ {}
//	{"op":"drop","key":…}                    ─▶ closed            ─▶ {}
//	{"op":"list"}                            ─▶                   ─▶ {"keys":{key:to …}}
//
// A key is "tcp/[::]:8080"; to is "172.17.0.2:80".
package portproxy

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"corten.dev/corten/internal/network/resident"
	"golang.org/x/sys/unix"
)

// Request and Answer are the packets of the control socket.
type Request struct {
	Op  string `json:"op"`
	Key string `json:"key,omitempty"`
	To  string `json:"to,omitempty"`
}

// Answer is what comes back; Err is empty when all is well.
type Answer struct {
	Err  string            `json:"err,omitempty"`
	Keys map[string]string `json:"keys,omitempty"`
}

const (
	udpIdle     = 90 * time.Second // how long a udp sender's way is remembered, as Docker's proxy
	dialTimeout = 10 * time.Second
	maxPacket   = 64 << 10
	maxSenders  = 4096 // per port
	grace       = 5 * time.Second
)

// Main is the process; it returns the exit code. Its control socket is descriptor 3.
func Main() int {
	if err := resident.Confine(); err != nil {
		fmt.Fprintln(os.Stderr, "port proxy:", err)
		return 1
	}
	resident.Slim()
	f := os.NewFile(3, "control")
	ln, err := net.FileListener(f)
	if err == nil {
		err = f.Close()
	}
	if err == nil {
		err = Serve(ln)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "port proxy:", err)
		return 1
	}
	return 0
}

// proxy holds the ports.
type proxy struct {
	engines resident.Engines
	idle    *time.Timer

	mu    sync.Mutex
	ports map[string]*port
}

type port struct {
	to    string
	close func() error
}

// Serve answers engines on the listener until nothing is left to do.
func Serve(ln net.Listener) error {
	p := &proxy{ports: map[string]*port{}}
	done := make(chan struct{})
	var once sync.Once
	p.idle = time.AfterFunc(grace, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.engines.None() && len(p.ports) == 0 {
			once.Do(func() { close(done); _ = ln.Close() })
		}
	})
	for {
		c, err := ln.Accept()
		if err != nil {
			select {
			case <-done:
				return nil
			default:
				return err
			}
		}
		conn := c.(*net.UnixConn)
		leave := p.engines.Enter(conn)
		go func() {
			p.engine(conn)
			leave()
			p.idle.Reset(time.Millisecond)
		}()
	}
}

// engine answers one connection.
func (p *proxy) engine(c *net.UnixConn) {
	defer c.Close()
	buf, oob := make([]byte, maxPacket), make([]byte, unix.CmsgSpace(4))
	for {
		n, oobn, _, _, err := c.ReadMsgUnix(buf, oob)
		if err != nil || n == 0 {
			return
		}
		files, err := resident.Descriptors(oob[:oobn])
		var f *os.File
		if len(files) > 0 {
			f = files[0]
		}
		var req Request
		if err == nil {
			err = json.Unmarshal(buf[:n], &req)
		}
		var ans Answer
		if err == nil {
			ans, err = p.do(req, f)
		}
		err = errors.Join(err, resident.Close(files)) // do has its own duplicate
		if err != nil {
			ans.Err = err.Error()
		}
		raw, err := json.Marshal(ans)
		if err != nil {
			return
		}
		if _, err := c.Write(raw); err != nil {
			return
		}
	}
}

func (p *proxy) do(req Request, f *os.File) (Answer, error) {
	switch req.Op {
	case "add":
		return Answer{}, p.add(req, f)
	case "drop":
		p.mu.Lock()
		at := p.ports[req.Key]
		delete(p.ports, req.Key)
		p.mu.Unlock()
		if at == nil {
			return Answer{}, nil
		}
		return Answer{}, at.close()
	case "list":
		p.engines.FinishDead()
		p.mu.Lock()
		defer p.mu.Unlock()
		keys := map[string]string{}
		for key, at := range p.ports {
			keys[key] = at.to
		}
		return Answer{Keys: keys}, nil
	}
	return Answer{}, fmt.Errorf("unknown request %q", req.Op)
}

// add serves a port; with a key that is there already it replaces it. What is there with the same target stays as it is: its flows go on.
func (p *proxy) add(req Request, f *os.File) error {
	proto, _, ok := strings.Cut(req.Key, "/")
	if _, err := netip.ParseAddrPort(req.To); err != nil || !ok || f == nil {
		return fmt.Errorf("bad request to add %q to %q", req.Key, req.To)
	}
	p.mu.Lock()
	there := p.ports[req.Key]
	p.mu.Unlock()
	if there != nil && there.to == req.To {
		return nil
	}
	at := &port{to: req.To}
	switch proto {
	case "tcp":
		ln, err := net.FileListener(f)
		if err != nil {
			return err
		}
		at.close = ln.Close
		go stream(ln, req.To)
	case "udp":
		pc, err := net.FilePacketConn(f)
		if err != nil {
			return err
		}
		front, ok := pc.(*net.UDPConn)
		if !ok {
			return errors.Join(fmt.Errorf("the socket of %s is none of udp", req.Key), pc.Close())
		}
		at.close = front.Close
		go packets(front, req.To)
	default:
		return fmt.Errorf("protocol %q cannot be passed on", proto)
	}
	p.mu.Lock()
	old := p.ports[req.Key]
	p.ports[req.Key] = at
	p.mu.Unlock()
	if old != nil {
		return old.close()
	}
	return nil
}

// stream passes connections on until the listener closes.
func stream(ln net.Listener, to string) {
	for {
		c, err := ln.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // no descriptors left: those in use will end
			time.Sleep(50 * time.Millisecond)
			continue
		}
		go connection(c.(*net.TCPConn), to)
	}
}

// connection copies both ways; the end of one direction is passed on as such.
func connection(c *net.TCPConn, to string) {
	defer c.Close()
	d := net.Dialer{Timeout: dialTimeout}
	up, err := d.Dial("tcp", to)
	if err != nil {
		_ = c.SetLinger(0) // refused is what the client should see
		return
	}
	defer up.Close()
	t := up.(*net.TCPConn)
	done := make(chan struct{})
	go func() {
		defer close(done)
		pass(t, c)
	}()
	pass(c, t)
	<-done
}

func pass(dst, src *net.TCPConn) {
	if _, err := io.Copy(dst, src); err != nil {
		_ = dst.SetLinger(0)
		_ = dst.Close()
		_ = src.Close()
		return
	}
	_ = dst.CloseWrite()
}
