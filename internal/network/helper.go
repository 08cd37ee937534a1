package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"corten.dev/corten/internal/network/resident"
	"golang.org/x/sys/unix"
)

// helper is the engine's side of a small process that outlives it: the port proxy (package portproxy) or the name server (package dns), each of which draws its protocol.
//
// Requests go through one goroutine, in their order. The process is started with the first request that gives it something to hold, and again, with everything it is to hold,
// when it died. When nothing is left to hold for a while the engine hangs up, and the process ends.
type helper struct {
	name   string // for the log
	path   string // of the control socket
	argv   []string
	cgroup *os.File
	log    *slog.Logger
	queue  chan helperOp
	// all is what a fresh process is to hold; idle says that this is nothing.
	all  func() []packet
	idle func() bool

	conn  *net.UnixConn // used by the goroutine alone once it runs
	watch *net.UnixConn
}

// packet is one request: what is sent, with the files that go along.
type packet struct {
	req   any
	files []*os.File
}

// helperOp is a packet on its way.
type helperOp struct {
	packet func() packet
	soon   bool          // where the process must be started first, that is not waited for
	done   chan error    // nil: nobody waits
	gone   *net.UnixConn // no packet, but news: the watch on this connection saw its end
	again  bool          // no packet, but another try to have a process
}

const helperIdle = 10 * time.Second

func newHelper(l *Local, name, socket string, argv []string) *helper {
	return &helper{name: name, path: filepath.Join(l.opt.ExecRoot, socket), argv: argv, cgroup: l.opt.Cgroup, log: l.log, queue: make(chan helperOp, 256)}
}

// dial connects to the process that is there.
func (h *helper) dial() (*net.UnixConn, error) {
	return net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: h.path, Net: "unixpacket"})
}

// connect is dial for good, with a watch over the process.
func (h *helper) connect(ctx context.Context, work *sync.WaitGroup) (err error) {
	if h.conn, err = h.dial(); err != nil {
		return err
	}
	if h.watch, err = h.dial(); err != nil {
		h.hangUp()
		return err
	}
	h.watchOver(ctx, work, h.watch)
	return nil
}

func (h *helper) hangUp() {
	for _, c := range []*net.UnixConn{h.conn, h.watch} {
		if c != nil {
			_ = c.Close() // what it was asked is answered, or lost with it
		}
	}
	h.conn, h.watch = nil, nil
}

// watchOver waits on a connection of its own for the end of the process, also of one that an earlier engine started, and has it replaced.
func (h *helper) watchOver(ctx context.Context, work *sync.WaitGroup, conn *net.UnixConn) {
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	work.Go(func() {
		defer stop()
		_, err := conn.Read(make([]byte, 1)) // nothing ever comes
		if errors.Is(err, net.ErrClosed) {
			return // by us
		}
		_ = conn.Close()
		h.log.Debug(h.name+" hung up", "err", err)
		select {
		case h.queue <- helperOp{gone: conn}:
		case <-ctx.Done():
		}
	})
}

// spawn starts the process, with the control socket that we open for it. It must outlive us: a session of its own, and nothing of ours.
func (h *helper) spawn() error {
	if err := os.MkdirAll(filepath.Dir(h.path), 0o711); err != nil {
		return err
	}
	if err := os.Remove(h.path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	ln, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: h.path, Net: "unixpacket"})
	if err != nil {
		return err
	}
	ln.SetUnlinkOnClose(false)
	defer ln.Close()
	if err := os.Chmod(h.path, 0o600); err != nil {
		return err
	}
	f, err := ln.File()
	if err != nil {
		return err
	}
	defer f.Close()
	cmd := exec.Command(h.argv[0], h.argv[1:]...)
	cmd.ExtraFiles = []*os.File{f}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if h.cgroup != nil {
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(h.cgroup.Fd())
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", h.name, err)
	}
	go func() {
		if err := cmd.Wait(); err != nil {
			h.log.Warn(h.name+" ended", "err", err)
		}
	}()
	return nil
}

// call is one request and its answer, which may come with files.
func call(c *net.UnixConn, p packet, answer any) (files []*os.File, err error) {
	if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return nil, err
	}
	if err := resident.Send(c, p.req, p.files); err != nil {
		return nil, err
	}
	size := 4 << 10
	if answer != nil { // a list
		size = 256 << 10
	}
	buf, oob := make([]byte, size), make([]byte, unix.CmsgSpace(4*16))
	n, oobn, _, _, err := c.ReadMsgUnix(buf, oob)
	if err != nil {
		return nil, err
	}
	if n == 0 {
		return nil, io.EOF
	}
	files, err = resident.Descriptors(oob[:oobn])
	if err != nil {
		return nil, err
	}
	var refusal struct {
		Err string `json:"err"`
	}
	if err := json.Unmarshal(buf[:n], &refusal); err != nil {
		return files, err
	}
	if refusal.Err != "" {
		return files, errors.New(refusal.Err)
	}
	if answer != nil {
		if err := json.Unmarshal(buf[:n], answer); err != nil {
			return files, err
		}
	}
	return files, c.SetDeadline(time.Time{})
}

// run sends the requests until the engine ends.
func (h *helper) run(ctx context.Context, work *sync.WaitGroup) {
	defer h.hangUp()
	timer := time.NewTimer(helperIdle)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case op := <-h.queue:
			h.serve(ctx, work, op)
			timer.Reset(helperIdle)
		case <-timer.C:
			if h.conn != nil && h.idle() {
				h.hangUp()
			}
		}
	}
}

// serve sends one request. A process that is not there, or died, is started with everything that it is to hold, the request's own part included.
func (h *helper) serve(ctx context.Context, work *sync.WaitGroup, op helperOp) {
	switch {
	case op.gone != nil && op.gone != h.watch, op.again && h.conn != nil:
		return // another is there already
	case op.gone == nil && h.conn != nil:
		_, err := call(h.conn, op.packet(), nil)
		if !broken(err) {
			h.tell(op, err)
			return
		}
		h.log.Warn(h.name+" is gone", "err", err)
	}
	h.hangUp()
	if h.idle() {
		h.tell(op, nil)
		return
	}
	if op.soon {
		h.tell(op, nil)
		op.done = nil
	}
	err := h.restart(ctx, work)
	h.tell(op, err)
	if err != nil && broken(err) { // those that are there already need one, too
		h.hangUp()
		time.AfterFunc(time.Second, func() {
			select {
			case h.queue <- helperOp{again: true}:
			case <-ctx.Done():
			}
		})
	}
}

func (h *helper) tell(op helperOp, err error) {
	if op.done != nil {
		op.done <- err
	} else if err != nil {
		h.log.Error(h.name, "err", err)
	}
}

// broken says that nobody answers any more, in contrast to an answer that refuses.
func broken(err error) bool {
	var nerr net.Error
	return errors.As(err, &nerr) || errors.Is(err, io.EOF) || errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET)
}

// restart finds a process, or starts one, and hands it everything. One that is just ending takes the call and does not answer: then there is a second try.
func (h *helper) restart(ctx context.Context, work *sync.WaitGroup) error {
	err := h.connect(ctx, work)
	if err == nil {
		if err = h.handAll(h.conn); !broken(err) {
			return err
		}
		h.hangUp()
	}
	if err := h.spawn(); err != nil {
		return err
	}
	if err := h.connect(ctx, work); err != nil {
		return err
	}
	return h.handAll(h.conn)
}

// handAll hands everything over. What is refused is told, and does not keep the rest back.
func (h *helper) handAll(conn *net.UnixConn) error {
	var all []error
	for _, p := range h.all() {
		_, err := call(conn, p, nil)
		if broken(err) {
			return err
		}
		all = append(all, err)
	}
	return errors.Join(all...)
}

// ask queues a request and waits until it was worked on.
func (h *helper) ask(ctx context.Context, done <-chan struct{}, op helperOp) error {
	op.done = make(chan error, 1)
	select {
	case h.queue <- op:
	case <-done: // closed: the process goes on with what it has, as for any engine that ends
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-op.done:
		return err
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
