package serve

import (
	"syscall"

	"corten.dev/corten/internal/linux/launch"
	"corten.dev/corten/internal/monitor/wire"
)

// errnoOf finds the errno of what the packages below return.
func errnoOf(err error) syscall.Errno {
	switch e := err.(type) {
	case syscall.Errno:
		return e
	case *failure:
		return e.errno
	case *launch.Error:
		return syscall.Errno(e.Errno)
	}
	return 0
}

// parcel is the descriptors of a Launch or Exec packet, in the order in which they travel.
type parcel struct {
	program  []byte // mapped when it came as a file
	mapped   bool
	oom      int
	attached []int
	files    []int
}

func unpack(m *wire.Message, fds []int) (*parcel, error) {
	p := &parcel{program: m.Program, oom: -1}
	need := len(m.Attached)
	for _, f := range [...]uint8{wire.ProgramFD, wire.OOMEventFD} {
		if m.Flags&f != 0 {
			need++
		}
	}
	if len(fds) < need {
		closeAll(fds)
		return nil, &failure{"descriptors are missing", syscall.EBADMSG}
	}
	if m.Flags&wire.ProgramFD != 0 {
		var st syscall.Stat_t
		err := syscall.Fstat(fds[0], &st)
		if err == nil {
			p.program, err = syscall.Mmap(fds[0], 0, int(st.Size), syscall.PROT_READ, syscall.MAP_PRIVATE)
		}
		syscall.Close(fds[0])
		fds = fds[1:]
		if err != nil {
			closeAll(fds)
			return nil, &failure{"map the program", errnoOf(err)}
		}
		p.mapped = true
	}
	if m.Flags&wire.OOMEventFD != 0 {
		p.oom, fds = fds[0], fds[1:]
	}
	p.attached, p.files = fds[:len(m.Attached)], fds[len(m.Attached):]
	return p, nil
}

func (p *parcel) close(all bool) {
	if p.mapped {
		syscall.Munmap(p.program)
	}
	closeAll(p.files)
	if all {
		closeAll(p.attached)
		closeAll([]int{p.oom})
	}
}

// launch starts the container's first process.
func (s *Server) launch(e *engine, m *wire.Message, fds []int) (*process, error) {
	if len(s.procs) > 0 {
		closeAll(fds)
		return nil, &failure{"the monitor has its container already", syscall.EBUSY}
	}
	pc, err := unpack(m, fds)
	if err != nil {
		return nil, err
	}
	if s.listener == nil { // before the start: an engine that dies now leaves a container that the next one finds
		err = s.listen(m.Folder)
	}
	var p *process
	if err == nil {
		s.nonblock = m.Flags&wire.NonBlocking != 0
		s.send.sharing = s.nonblock
		if pc.oom >= 0 || m.OOMPath != "" {
			s.oom = newOOMWatch(s, pc.oom, m.OOMPath)
			pc.oom = -1
		}
		p, err = s.start(m, pc)
	}
	if err == nil && m.LogPath != "" { // while the process sets itself up; it has said nothing yet that was read
		if err = s.openLog(m); err != nil {
			p.kill()
			p.drop()
		}
	}
	pc.close(err != nil)
	if err != nil {
		s.letGo()
		return nil, err
	}
	s.exitPath, s.durable = m.ExitPath, m.Flags&wire.Durable != 0
	p.begin(e, m, pc.attached)
	return p, nil
}

// begin gives a process that was started its clients; one that a command is still making gets them with its number.
func (p *process) begin(e *engine, m *wire.Message, conns []int) {
	if p.making != nil {
		p.making.wait(e, m, conns)
		return
	}
	p.join(e, m.Attached, conns)
}

// join attaches the clients that were there before the process.
func (p *process) join(e *engine, attached []wire.Attachment, conns []int) {
	for i := range attached {
		p.s.attach(e, p, conns[i], &attached[i])
	}
	if p.stdio&wire.AttachOnly != 0 && len(attached) == 0 {
		p.waitFirst = monotonic() + firstLimit
	}
}

// kill ends and reaps a process that nobody was told of.
func (p *process) kill() {
	syscall.Kill(p.pid, syscall.SIGKILL)
	for {
		if _, err := syscall.Wait4(p.pid, nil, 0, nil); err != syscall.EINTR {
			break
		}
	}
}

// drop forgets a process that is reaped, and of which nobody was told. Its output is not read.
func (p *process) drop() {
	s := p.s
	s.close(p.pidfd)
	if p.console != nil {
		s.close(p.console.fd)
		p.console = nil
	}
	p.in.close()
	for i := range p.out {
		p.out[i].close()
	}
	for i, x := range s.procs {
		if x == p {
			s.procs = append(s.procs[:i], s.procs[i+1:]...)
			break
		}
	}
}

// letGo closes what the monitor keeps for its container beside its processes.
func (s *Server) letGo() {
	if s.log != nil {
		s.log.close()
		s.log = nil
	}
	if s.oom != nil {
		s.close(s.oom.file)
		s.close(s.oom.event)
		s.oom = nil
	}
	s.exitPath = ""
}

// launched does what need not come before the answer.
func (s *Server) launched() {
	if s.oom != nil {
		s.oom.begin()
	}
	s.score.protect()
	s.procs[0].flow()
}

// exec starts another process.
func (s *Server) exec(e *engine, m *wire.Message, fds []int) (*process, error) {
	pc, err := unpack(m, fds)
	if err != nil {
		return nil, err
	}
	if len(s.procs) == 0 || s.procs[0].ended {
		pc.close(true)
		return nil, &failure{"the container is not running", syscall.ESRCH}
	}
	if m.Session == "" || s.find(m.Session) != nil {
		pc.close(true)
		return nil, &failure{"the session's name is taken", syscall.EEXIST}
	}
	s.score.expose()
	p, err := s.start(m, pc)
	s.score.protect()
	pc.close(err != nil)
	if err != nil {
		return nil, err
	}
	p.begin(e, m, pc.attached)
	if p.making == nil {
		p.flow()
	}
	return p, nil
}

// ends are the two ends of a process's stdio.
type ends struct {
	child [4]int // slots 0 to 3
	in    int
	out   [2]int
	cons  int
}

func (n *ends) closeChild() {
	for i, fd := range n.child {
		dup := false
		for _, x := range n.child[:i] {
			dup = dup || x == fd
		}
		if fd >= 0 && !dup {
			syscall.Close(fd)
		}
	}
}

func (n *ends) closeAll() {
	n.closeChild()
	closeAll([]int{n.in, n.out[0], n.out[1], n.cons})
}

// openEnds makes the pipes, or for a terminal the socket over which its master comes.
func openEnds(stdio uint8) (*ends, error) {
	n := &ends{child: [4]int{-1, -1, -1, -1}, in: -1, out: [2]int{-1, -1}, cons: -1}
	fail := func(what string, err error) (*ends, error) {
		n.closeAll()
		return nil, &failure{what, errnoOf(err)}
	}
	if stdio&wire.Terminal != 0 || stdio&wire.Stdin == 0 {
		null, err := syscall.Open("/dev/null", syscall.O_RDWR|syscall.O_CLOEXEC, 0)
		if err != nil {
			return fail("open /dev/null", err)
		}
		n.child[0] = null
	}
	if stdio&wire.Terminal != 0 {
		n.child[1], n.child[2] = n.child[0], n.child[0]
		pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
		if err != nil {
			return fail("socketpair", err)
		}
		n.cons, n.child[3] = pair[0], pair[1]
		return n, nil
	}
	var p [2]int
	if stdio&wire.Stdin != 0 {
		if err := syscall.Pipe2(p[:], syscall.O_CLOEXEC); err != nil {
			return fail("pipe", err)
		}
		n.child[0], n.in = p[0], p[1]
		syscall.SetNonblock(n.in, true)
	}
	for i := range n.out {
		if err := syscall.Pipe2(p[:], syscall.O_CLOEXEC); err != nil {
			return fail("pipe", err)
		}
		n.out[i], n.child[i+1] = p[0], p[1]
		syscall.SetNonblock(p[0], true)
	}
	return n, nil
}

// start decodes the program, makes the stdio and starts the process.
func (s *Server) start(m *wire.Message, pc *parcel) (*process, error) {
	prog, err := launch.Decode(pc.program)
	if err != nil {
		return nil, &failure{err.Error(), syscall.EINVAL}
	}
	n, err := openEnds(m.Stdio)
	if err != nil {
		return nil, err
	}
	making, err := newMaking(prog, m.Stdio, n, pc.files)
	if err != nil {
		n.closeAll()
		return nil, err
	}
	fds := append(n.child[:3:3], -1)
	if n.child[3] >= 0 || len(pc.files) > 0 {
		fds[3] = n.child[3]
		fds = append(fds, pc.files...)
	} else {
		fds = fds[:3]
	}
	pid, pidfd, err := prog.Start(fds)
	if err != nil {
		n.closeAll()
		return nil, &failure{err.Error(), errnoOf(err)}
	}
	n.closeChild()
	p := &process{s: s, session: m.Session, stdio: m.Stdio, pid: pid, pidfd: pidfd, terminal: m.Stdio&wire.Terminal != 0,
		logged: m.Kind == wire.Launch, rows: m.Rows, cols: m.Cols, making: making}
	p.in = input{p: p, fd: n.in}
	for i := range p.out {
		p.out[i] = output{p: p, fd: n.out[i], stream: i + 1}
	}
	p.life = life{p}
	if n.cons >= 0 {
		p.console = &console{p: p, fd: n.cons, listening: making != nil}
		s.watch(n.cons, epollIn, p.console)
	}
	s.procs = append(s.procs, p)
	s.watch(pidfd, epollIn, &p.life)
	return p, nil
}

// console waits for the master of the terminal that the program opens.
type console struct {
	p         *process
	fd        int
	listening bool // for the connection on which it comes
}

func (c *console) ready(uint32) {
	if c.listening {
		conn, _, err := syscall.Accept4(c.fd, syscall.SOCK_CLOEXEC)
		if err != nil {
			return
		}
		c.p.s.close(c.fd)
		c.fd, c.listening = conn, false
		c.p.s.watch(conn, epollIn, c)
		return
	}
	c.take()
	c.p.s.close(c.fd)
	c.p.console = nil
	c.p.in.release()
}

// take receives the master; nothing comes when the program failed before it got there.
func (c *console) take() {
	var oob [64]byte
	var b [16]byte
	_, n, _, _, err := syscall.Recvmsg(c.fd, b[:], oob[:], syscall.MSG_DONTWAIT|syscall.MSG_CMSG_CLOEXEC)
	if err != nil {
		return
	}
	fds := rights(oob[:n])
	if len(fds) == 0 {
		return
	}
	closeAll(fds[1:])
	p, fd := c.p, fds[0]
	syscall.SetNonblock(fd, true)
	if p.rows > 0 || p.cols > 0 {
		setSize(fd, p.rows, p.cols)
	}
	p.in.fd, p.out[0].fd = fd, fd
	p.master = master{p}
	p.flow()
}
