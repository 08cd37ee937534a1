package serve

import (
	"syscall"

	"corten.dev/corten/internal/logs/logfile"
	"corten.dev/corten/internal/monitor/wire"
)

// record finishes the log and writes the exit, before anyone is told of it. On a full disk the exit is kept here, until an engine comes and is told.
func (s *Server) record(m *wire.Message) {
	if s.log != nil {
		s.log.finish(s.durable)
	}
	if s.exitPath != "" {
		errno := s.writeExit(m)
		s.unwritten = errno == syscall.ENOSPC || errno == syscall.EDQUOT
	}
}

func (s *Server) writeExit(m *wire.Message) syscall.Errno {
	var buf [256]byte
	b := wire.AppendExit(buf[:0], m)
	aside := s.exitPath + ".new"
	fd, err := syscall.Open(aside, syscall.O_WRONLY|syscall.O_CREAT|syscall.O_TRUNC|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return errnoOf(err) // an engine that is there is told all the same; without its folder the exit is lost
	}
	n, errno := write(fd, b)
	if s.durable {
		syscall.Fdatasync(fd)
	}
	syscall.Close(fd)
	if errno == 0 && n == len(b) {
		errno = errnoOf(syscall.Rename(aside, s.exitPath))
	} else if errno == 0 {
		errno = syscall.ENOSPC
	}
	if errno != 0 {
		syscall.Unlink(aside)
		return errno
	}
	if s.durable {
		s.syncFolder()
	}
	return 0
}

// syncFolder makes the rename durable.
func (s *Server) syncFolder() {
	dir := s.exitPath
	for len(dir) > 1 && dir[len(dir)-1] != '/' {
		dir = dir[:len(dir)-1]
	}
	if fd, err := syscall.Open(dir, syscall.O_RDONLY|syscall.O_DIRECTORY|syscall.O_CLOEXEC, 0); err == nil {
		syscall.Fsync(fd)
		syscall.Close(fd)
	}
}

// openLog opens the container's log. A container whose log cannot be opened does not start.
func (s *Server) openLog(m *wire.Message) error {
	w, err := logfile.Open(logfile.Options{Path: m.LogPath, MaxSize: m.LogSize, MaxFiles: int(m.LogFiles), Sync: func(fd int) {
		go func() { // a finished file is flushed without anyone waiting
			syscall.Fdatasync(fd)
			syscall.Close(fd)
		}()
	}})
	if err != nil {
		return &failure{"open log " + m.LogPath, errnoOf(err)}
	}
	if m.Flags&wire.NonBlocking != 0 {
		s.log = newBackground(w, int(m.LogBuffer))
		return nil
	}
	s.log = (*direct)(w)
	return nil
}

// oomWatch hears of the kernel's out-of-memory kills in the container.
//
// event is an eventfd of v1's memory.oom_control; path is a file with a line "oom_kill N" (memory.events of v2, memory.oom_control of v1), which says for certain.
type oomWatch struct {
	s      *Server
	event  int
	path   string
	file   int
	counts int64 // oom_kill at the start; -1: not known
	last   int64
	seen   bool
	again  int64 // after how many milliseconds to look for path once more; 0 for never
	since  int64 // when it was looked for
}

// newOOMWatch takes the count before there is a process that could be killed.
func newOOMWatch(s *Server, event int, path string) *oomWatch {
	o := &oomWatch{s: s, event: event, path: path, file: -1, counts: -1, last: -1}
	if path != "" && o.open() {
		o.counts = o.last
	}
	return o
}

// begin listens.
func (o *oomWatch) begin() {
	switch {
	case o.file >= 0:
		o.listen()
	case o.path != "":
		o.again, o.since = 1, monotonic()
	}
	if o.event >= 0 {
		syscall.SetNonblock(o.event, true)
		o.s.watch(o.event, epollIn, o)
	}
}

// lookFor is how long a file is looked for: systemd makes the container's cgroup when its process exists already.
const lookFor = 4096

// open takes the file, and tells whether it was there.
func (o *oomWatch) open() bool {
	fd, err := syscall.Open(o.path, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	o.file = fd
	o.last = o.kills()
	if o.again > 0 { // it did not exist when the process was made, so that all of its kills are the container's
		o.again, o.counts = 0, min(o.last, 0)
	}
	return true
}

// listen waits for changes, after one look for what changed before.
func (o *oomWatch) listen() {
	o.s.watch(o.file, epollPri, (*oomFile)(o)) // an ordinary file cannot be watched; then only the exit tells
	if o.last = max(o.kills(), o.last); o.last > o.counts && o.counts >= 0 && o.event < 0 {
		o.s.tellAll(&wire.Message{Kind: wire.OOM})
	}
}

// tend looks for the file when it is time to, and returns how many milliseconds the loop may wait; -1 is for ever.
func (o *oomWatch) tend(timeout int) int {
	if o == nil || o.again == 0 {
		return timeout
	}
	left := o.again - (monotonic()-o.since)/(second/1000)
	if left <= 0 {
		if o.open() {
			o.listen()
			return timeout
		}
		if o.again *= 2; o.again > lookFor {
			o.again = 0
			return timeout
		}
		o.since, left = monotonic(), o.again
	}
	if timeout >= 0 {
		return min(timeout, int(left))
	}
	return int(left)
}

// ready is the eventfd's.
func (o *oomWatch) ready(uint32) {
	var b [8]byte
	if n, errno := read(o.event, b[:]); n != 8 || errno != 0 {
		if errno != syscall.EAGAIN {
			o.s.close(o.event)
			o.event = -1
		}
		return
	}
	o.seen = true
	o.s.tellAll(&wire.Message{Kind: wire.OOM})
}

type oomFile oomWatch

func (f *oomFile) ready(uint32) {
	o := (*oomWatch)(f)
	n := o.kills()
	if n < 0 { // the cgroup is gone
		o.s.unwatch(o.file)
		return
	}
	if n > o.last {
		o.last = n
		if o.event < 0 {
			o.s.tellAll(&wire.Message{Kind: wire.OOM})
		}
	}
}

// kills reads the number behind "oom_kill "; -1 when there is none.
func (o *oomWatch) kills() int64 {
	var buf [512]byte
	n, err := syscall.Pread(o.file, buf[:], 0)
	if err != nil {
		return -1
	}
	return wire.OOMKills(buf[:max(n, 0)])
}

func (o *oomWatch) killed() bool {
	if o == nil {
		return false
	}
	if o.again > 0 {
		o.open()
	}
	if o.counts >= 0 {
		// systemd takes a cgroup away as soon as it is empty: what was seen last is true then.
		return max(o.kills(), o.last) > o.counts
	}
	if o.event >= 0 {
		var b [8]byte
		syscall.SetNonblock(o.event, true)
		if n, errno := read(o.event, b[:]); n == 8 && errno == 0 {
			o.seen = true
		}
	}
	return o.seen
}

// score is the monitor's oom_score_adj: it must not be what the kernel kills first, while its children must not inherit that.
type score struct {
	first  []byte // what the monitor was born with
	failed bool
}

const scorePath = "/proc/self/oom_score_adj"

func (a *score) set(b []byte) {
	fd, err := syscall.Open(scorePath, syscall.O_RDWR|syscall.O_CLOEXEC, 0)
	if err != nil {
		a.failed = true
		return
	}
	if a.first == nil {
		var buf [16]byte
		n, _ := read(fd, buf[:])
		a.first = append([]byte(nil), buf[:max(n, 0)]...)
	}
	if _, errno := write(fd, b); errno != 0 {
		a.failed = true
	}
	syscall.Close(fd)
}

// protect is called when no child is being made.
func (a *score) protect() {
	if !a.failed {
		a.set([]byte("-999"))
	}
}

// expose is called before a child is made.
func (a *score) expose() {
	if !a.failed && a.first != nil {
		a.set(a.first)
	}
}
