package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"corten.dev/corten/internal/network/portproxy"
	"golang.org/x/sys/unix"
)

// proxyLink is the engine's side of the port proxy (package portproxy has the protocol). Requests go through one goroutine, in their order. A new port
// is not waited for: its socket listens already, and whoever connects waits in its queue.
type proxyLink struct {
	queue chan proxyOp
	// held is what a proxy of an earlier engine had when we came; written before the first Restore.
	held map[string]string

	mu   sync.Mutex
	want map[string]*binding // what the proxy is to hold
	conn *net.UnixConn       // used by the goroutine alone once it runs
}

type proxyOp struct {
	req  portproxy.Request
	b    *binding
	done chan error // nil: nobody waits
}

func proxyKey(b *binding) string {
	return b.Proto + "/" + netip.AddrPortFrom(b.HostIP, b.HostPort).String()
}

// proxyFor says whether a protocol can be passed on by the proxy.
func (l *Local) proxyFor(proto string) bool { return len(l.opt.PortProxy) > 0 && proto != "sctp" }

func (l *Local) proxyPath() string { return filepath.Join(l.opt.ExecRoot, "portproxy.sock") }

// startProxyLink finds the proxy that an earlier engine left, if any.
func (l *Local) startProxyLink(ctx context.Context) {
	l.proxy = &proxyLink{queue: make(chan proxyOp, 256), held: map[string]string{}, want: map[string]*binding{}}
	if len(l.opt.PortProxy) == 0 {
		return
	}
	if conn, err := l.dialProxy(); err == nil {
		l.proxy.conn = conn
		ans, err := call(conn, portproxy.Request{Op: "list"}, nil)
		if err != nil {
			l.log.Warn("ask the port proxy", "err", err)
		}
		for key, to := range ans.Keys {
			l.proxy.held[key] = to
		}
		if err := l.watchProxy(ctx); err != nil {
			l.log.Warn("watch the port proxy", "err", err)
		}
	}
	l.work.Go(func() { l.proxyLoop(ctx) })
}

func (l *Local) dialProxy() (*net.UnixConn, error) {
	return net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: l.proxyPath(), Net: "unixpacket"})
}

// spawnProxy starts the process, with the control socket that we open for it. It must outlive us: a session of its own, and nothing of ours.
func (l *Local) spawnProxy() error {
	if err := os.MkdirAll(l.opt.ExecRoot, 0o711); err != nil {
		return err
	}
	if err := os.Remove(l.proxyPath()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	ln, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: l.proxyPath(), Net: "unixpacket"})
	if err != nil {
		return err
	}
	ln.SetUnlinkOnClose(false)
	defer ln.Close()
	if err := os.Chmod(l.proxyPath(), 0o600); err != nil {
		return err
	}
	f, err := ln.File()
	if err != nil {
		return err
	}
	defer f.Close()
	cmd := exec.Command(l.opt.PortProxy[0], l.opt.PortProxy[1:]...)
	cmd.ExtraFiles = []*os.File{f}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if l.opt.Cgroup != nil {
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(l.opt.Cgroup.Fd())
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start port proxy: %w", err)
	}
	go func() {
		if err := cmd.Wait(); err != nil {
			l.log.Warn("port proxy ended", "err", err)
		}
	}()
	return nil
}

// watchProxy waits on a connection of its own for the end of the proxy, also of one that an earlier engine started, and has it replaced.
func (l *Local) watchProxy(ctx context.Context) error {
	conn, err := l.dialProxy()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	l.work.Go(func() {
		defer stop()
		_, err := conn.Read(make([]byte, 1)) // nothing ever comes
		_ = conn.Close()
		if ctx.Err() == nil {
			l.log.Debug("port proxy hung up", "err", err)
			select {
			case l.proxy.queue <- proxyOp{req: portproxy.Request{Op: "list"}}: // finds it gone, and starts another
			case <-ctx.Done():
			}
		}
	})
	return nil
}

// call is one request and its answer.
func call(c *net.UnixConn, req portproxy.Request, f *os.File) (ans portproxy.Answer, err error) {
	raw, err := json.Marshal(req)
	if err != nil {
		return ans, err
	}
	var oob []byte
	if f != nil {
		oob = unix.UnixRights(int(f.Fd()))
	}
	if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return ans, err
	}
	if _, _, err := c.WriteMsgUnix(raw, oob, nil); err != nil {
		return ans, err
	}
	buf := make([]byte, 1<<20)
	n, err := c.Read(buf)
	if err != nil {
		return ans, err
	}
	if err := json.Unmarshal(buf[:n], &ans); err != nil {
		return ans, err
	}
	if ans.Err != "" {
		return ans, errors.New(ans.Err)
	}
	return ans, c.SetDeadline(time.Time{})
}

// proxyLoop sends the requests. A proxy that died is started again, with everything that it held.
func (l *Local) proxyLoop(ctx context.Context) {
	defer func() {
		if l.proxy.conn != nil {
			_ = l.proxy.conn.Close()
		}
	}()
	for {
		select {
		case <-ctx.Done():
			return
		case op := <-l.proxy.queue:
			err := l.proxySend(ctx, op)
			if op.done != nil {
				op.done <- err
			} else if err != nil {
				l.log.Error("port proxy", "request", op.req.Op, "port", op.req.Key, "err", err)
			}
		}
	}
}

func (l *Local) proxySend(ctx context.Context, op proxyOp) error {
	if l.proxy.conn != nil {
		_, err := call(l.proxy.conn, op.req, op.file())
		var broken net.Error
		if err == nil || !errors.As(err, &broken) && !errors.Is(err, io.EOF) {
			return err
		}
		_ = l.proxy.conn.Close()
		l.proxy.conn = nil
		l.log.Warn("port proxy is gone; starting another", "err", err)
	} else if op.req.Op == "drop" {
		return nil // no proxy, nothing held
	}
	l.proxy.mu.Lock()
	idle := len(l.proxy.want) == 0
	l.proxy.mu.Unlock()
	if idle {
		return nil
	}
	conn, err := l.dialProxy()
	if err != nil {
		if err := l.spawnProxy(); err != nil {
			return err
		}
		if conn, err = l.dialProxy(); err != nil {
			return err
		}
	}
	l.proxy.conn = conn
	if err := l.watchProxy(ctx); err != nil {
		return err
	}
	l.proxy.mu.Lock()
	all := make(map[string]*binding, len(l.proxy.want))
	for key, b := range l.proxy.want {
		all[key] = b
	}
	l.proxy.mu.Unlock()
	for key, b := range all { // the one that was asked for is among them
		if b.file == nil {
			if b.file, err = hold(b); err != nil {
				l.log.Error("port is not passed on again", "port", key, "err", err)
				continue
			}
		}
		if _, err := call(conn, portproxy.Request{Op: "add", Key: key, To: b.target.String()}, b.file); err != nil {
			return err
		}
	}
	return nil
}

func (op proxyOp) file() *os.File {
	if op.b == nil {
		return nil
	}
	return op.b.file
}

// proxyAdd hands the bindings that the kernel cannot pass on to the proxy. Those that an earlier engine handed over are there already.
func (l *Local) proxyAdd(_ context.Context, list []*binding) error {
	for _, b := range list {
		if !b.proxy {
			continue
		}
		key := proxyKey(b)
		l.proxy.mu.Lock()
		l.proxy.want[key] = b
		l.proxy.mu.Unlock()
		if b.file == nil {
			continue
		}
		select {
		case l.proxy.queue <- proxyOp{req: portproxy.Request{Op: "add", Key: key, To: b.target.String()}, b: b}:
		case <-l.done:
		}
	}
	return nil
}

// proxyDrop takes them back, and waits: afterwards the host port is free.
func (l *Local) proxyDrop(ctx context.Context, list []*binding) error {
	var all []error
	for _, b := range list {
		if !b.proxy {
			continue
		}
		key := proxyKey(b)
		l.proxy.mu.Lock()
		_, there := l.proxy.want[key]
		delete(l.proxy.want, key)
		l.proxy.mu.Unlock()
		if !there {
			continue
		}
		op := proxyOp{req: portproxy.Request{Op: "drop", Key: key}, done: make(chan error, 1)}
		select {
		case l.proxy.queue <- op:
			select {
			case err := <-op.done:
				all = append(all, err)
			case <-l.done:
			case <-ctx.Done():
				all = append(all, ctx.Err())
			}
		case <-l.done: // closed: the proxy goes on with what it has, as for any engine that ends
		case <-ctx.Done():
			all = append(all, ctx.Err())
		}
	}
	return errors.Join(all...)
}

// proxySettle drops what a proxy holds for containers that are gone.
func (l *Local) proxySettle(ctx context.Context) error {
	var all []error
	for key := range l.proxy.held {
		l.proxy.mu.Lock()
		_, wanted := l.proxy.want[key]
		l.proxy.mu.Unlock()
		if wanted {
			continue
		}
		op := proxyOp{req: portproxy.Request{Op: "drop", Key: key}, done: make(chan error, 1)}
		l.proxy.queue <- op
		select {
		case err := <-op.done:
			all = append(all, err)
		case <-ctx.Done():
			return errors.Join(append(all, ctx.Err())...)
		}
	}
	clear(l.proxy.held)
	return errors.Join(all...)
}

// holdAgain holds a host port after a restart, unless the proxy kept it through.
func (l *Local) holdAgain(_ context.Context, b *binding) (err error) {
	if b.proxy && l.proxy.held[proxyKey(b)] == b.target.String() {
		return nil
	}
	b.file, err = hold(b)
	return err
}
