package dns

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"corten.dev/corten/internal/network/resident"
	"golang.org/x/sys/unix"
)

// The server lives in a small process of its own, one for all networks of an engine, so that containers find each other while the engine is away. The engine starts it with the first
// container on a user-defined network; it holds the containers' sockets and entries, goes on without the engine, and ends when it holds nothing and no engine is connected.
//
// The engine opens the control socket (a unix socket of packets) and hands it as descriptor 3. Each request is one packet, answered by one:
//
//	engine                                             server
//	{"op":"set","entry":…} + descriptors, or none   ─▶ answers for the entry's owner, by these sockets or those it has ─▶ {}
//	{"op":"drop","owner":…}                         ─▶ closed, forgotten                                               ─▶ {}
//	{"op":"list","owner":…}                         ─▶ the next owners after that one, by name                         ─▶ {"program":…,"owners":[…]}
//	{"op":"get","owner":…}                          ─▶                                                                 ─▶ {"entry":…} + descriptors
//	{"op":"end"}                                    ─▶ everything is closed                                            ─▶ {}
//	{"op":"gate"}                                   ─▶ from now on the server asks, on this connection: see gate.go
//
// The descriptors of an owner are udp, tcp (listening), and, where a name server in the container may have to be asked, those of ListenInside. An engine of another build
// starts a server of its own, hands it what it got from the old one, and ends that: both read the same sockets for a moment, and no question is lost.

// Request and Answer are the packets of the control socket.
type Request struct {
	Op    string `json:"op"`
	Owner string `json:"owner,omitempty"`
	Entry *Entry `json:"entry,omitempty"`
}

// Answer is what comes back; Err is empty when all is well.
type Answer struct {
	Err     string   `json:"err,omitempty"`
	Program string   `json:"program,omitempty"` // see ProgramID
	Owners  []string `json:"owners,omitempty"`
	Entry   *Entry   `json:"entry,omitempty"`
}

const (
	maxRequest = 128 << 10
	maxFiles   = 2 + insideUDP + insideTCP
	listPage   = 500
	grace      = 5 * time.Second
)

// ProgramID tells one build of a program from another: by its file.
func ProgramID(path string) (string, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return "", fmt.Errorf("look at %s: %w", path, err)
	}
	return fmt.Sprintf("%x:%x:%x:%x", st.Dev, st.Ino, st.Size, st.Mtim.Nano()), nil
}

// Main is the process; it returns the exit code. Its control socket is descriptor 3, its argument the path of the host's resolv.conf, or empty.
func Main(resolvConf string) int {
	if err := main(resolvConf); err != nil {
		fmt.Fprintln(os.Stderr, "name server:", err)
		return 1
	}
	return 0
}

func main(resolvConf string) error {
	program, err := ProgramID("/proc/self/exe")
	if err != nil {
		return err
	}
	if err := resident.Confine(); err != nil {
		return err
	}
	f := os.NewFile(3, "control")
	ln, err := net.FileListener(f)
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	resident.Slim()
	return Serve(ln, resolvConf, program, slog.New(slog.NewTextHandler(os.Stderr, nil)))
}

// process is the state of the process.
type process struct {
	program string
	book    *book
	srv     *Server
	log     *slog.Logger

	// one request at a time: what is half set is not listed
	turn sync.Mutex

	engines resident.Engines
	idle    *time.Timer
	stop    func()

	mu    sync.Mutex
	ended bool
}

// Serve answers engines on the listener until nothing is left to do.
func Serve(ln net.Listener, resolvConf, program string, log *slog.Logger) error {
	r := &process{program: program, book: newBook(resolvConf), log: log}
	var err error
	if r.srv, err = New(r.book, log); err != nil {
		return errors.Join(err, ln.Close())
	}
	r.stop = sync.OnceFunc(func() { _ = ln.Close() }) // nobody was told of it any more
	r.idle = time.AfterFunc(grace, r.endIfIdle)
	defer r.idle.Stop()
	done := make(chan struct{})
	defer r.book.gate.close()
	defer close(done)
	go r.book.gate.tell(done)
	for {
		c, err := ln.Accept()
		if err != nil {
			r.mu.Lock()
			ended := r.ended
			r.mu.Unlock()
			if ended {
				err = nil
			}
			return errors.Join(err, r.srv.Close())
		}
		conn := c.(*net.UnixConn)
		r.mu.Lock() // who comes while it ends is told so by the end of the connection, and starts another
		ended := r.ended
		var leave func()
		if !ended {
			leave = r.engines.Enter(conn)
		}
		r.mu.Unlock()
		if ended {
			_ = conn.Close() // nothing was read from it
			continue
		}
		go func() {
			gate := r.engine(conn)
			leave()
			if !gate { // which may be there before the engine's other connections, and says nothing about them
				r.idle.Reset(time.Millisecond)
			}
		}()
	}
}

func (r *process) endIfIdle() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.engines.None() && r.book.empty() {
		r.ended = true
		r.stop()
	}
}

// engine answers one connection, unless it is the gate, which is kept.
func (r *process) engine(c *net.UnixConn) (kept bool) {
	defer func() {
		if !kept {
			_ = c.Close() // what was asked is answered
		}
	}()
	buf, oob := make([]byte, maxRequest), make([]byte, unix.CmsgSpace(4*maxFiles))
	for {
		n, oobn, _, _, err := c.ReadMsgUnix(buf, oob)
		if err != nil || n == 0 {
			return false
		}
		files, err := resident.Descriptors(oob[:oobn])
		var req Request
		if err == nil {
			err = json.Unmarshal(buf[:n], &req)
		}
		var ans Answer
		var out []*os.File
		if kept = err == nil && req.Op == "gate"; kept {
			if err := resident.Close(files); err != nil {
				r.log.Warn("gate", "err", err)
			}
			r.book.gate.open(c)
			return true
		}
		if err == nil {
			ans, out, err = r.do(req, files)
		} else {
			err = errors.Join(err, resident.Close(files))
		}
		if err != nil {
			ans.Err = err.Error()
		}
		err = resident.Send(c, ans, out)
		if err = errors.Join(err, resident.Close(out)); err != nil {
			return false
		}
	}
}

// do works on one request. The files are its own.
func (r *process) do(req Request, files []*os.File) (ans Answer, out []*os.File, err error) {
	if req.Op != "set" {
		if err := resident.Close(files); err != nil {
			return ans, nil, err
		}
	}
	if req.Op == "list" && req.Owner == "" {
		r.engines.FinishDead()
	}
	r.turn.Lock()
	defer r.turn.Unlock()
	switch req.Op {
	case "set":
		return ans, nil, r.set(req.Entry, files)
	case "drop":
		r.srv.Remove(req.Owner)
		return ans, nil, r.book.drop(req.Owner)
	case "list":
		return Answer{Program: r.program, Owners: r.book.owners(req.Owner)}, nil, nil
	case "get":
		return r.get(req.Owner)
	case "end":
		return ans, nil, r.end()
	}
	return ans, nil, fmt.Errorf("unknown request %q", req.Op)
}

// end lets everything go, also with engines connected.
func (r *process) end() error {
	r.mu.Lock()
	r.ended = true
	r.mu.Unlock()
	r.stop()
	var all []error
	for owners := r.book.owners(""); len(owners) > 0; owners = r.book.owners("") {
		for _, owner := range owners {
			r.srv.Remove(owner)
			all = append(all, r.book.drop(owner))
		}
	}
	return errors.Join(all...)
}

func (r *process) set(e *Entry, files []*os.File) error {
	if e == nil || e.Owner == "" || len(files) == 1 {
		return errors.Join(errors.New("bad request to set an entry"), resident.Close(files))
	}
	if len(files) == 0 {
		return r.book.set(*e, nil)
	}
	var in *inside
	if len(files) > 2 {
		var err error
		if in, err = newInside(files[2:]); err != nil {
			return errors.Join(err, resident.Close(files[:2]))
		}
	}
	if err := r.book.set(*e, in); err != nil {
		return errors.Join(err, resident.Close(files[:2]))
	}
	udp, err := resident.Dup(files[0])
	if err != nil {
		return errors.Join(err, resident.Close(files[:2]))
	}
	tcp, err := resident.Dup(files[1])
	if err != nil {
		return errors.Join(err, unix.Close(udp), resident.Close(files[:2]))
	}
	return errors.Join(r.srv.Add(e.Owner, udp, tcp), resident.Close(files[:2]))
}

func (r *process) get(owner string) (Answer, []*os.File, error) {
	e, in, ok := r.book.entry(owner)
	if !ok {
		return Answer{}, nil, fmt.Errorf("no entry of %s", owner)
	}
	files, err := r.srv.Files(owner)
	if err != nil || in == nil {
		return Answer{Entry: &e}, files, err
	}
	for _, f := range slices.Clone(in.files) {
		fd, err := resident.Dup(f)
		if err != nil {
			return Answer{}, nil, errors.Join(err, resident.Close(files))
		}
		files = append(files, os.NewFile(uintptr(fd), "dns"))
	}
	return Answer{Entry: &e}, files, nil
}
