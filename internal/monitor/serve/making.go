package serve

import (
	"syscall"
	"unsafe"

	"corten.dev/corten/internal/linux/launch"
	"corten.dev/corten/internal/monitor/wire"
)

// making is a command that makes a process in our stead (launch.Builder.Makes): the command line of another OCI runtime. The command has the process's pipes, so that the process inherits
// them; it writes the process's number into a file, ends, and leaves its orphan to us, the subreaper. Then the process is as any other, and whoever asked for it gets the answer.
//
//	command ──fork──▶ process ─ ─ ─ ─ ─ ─ ─ ─ ─ ─▶ ours once the command ended
//	   └─ console socket: master of the terminal
//
// What the command itself says on the pipes is not the container's, and is dropped if it fails.
type making struct {
	e        *engine
	id       uint32
	kind     wire.Kind
	path     string
	attached []wire.Attachment
	conns    []int
}

// newMaking looks whether a program is such a command. The socket on which the terminal comes takes the place of the one for programs that open their terminal themselves.
func newMaking(prog *launch.Program, stdio uint8, n *ends, files []int) (*making, error) {
	path, slot, ok := prog.Made()
	if !ok {
		return nil, nil
	}
	if stdio&wire.Terminal != 0 {
		i := slot - launch.SlotFirst
		if i < 0 || i >= len(files) {
			return nil, &failure{"a command needs a socket for the terminal", syscall.EINVAL}
		}
		fd, err := fcntl(files[i], syscall.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return nil, &failure{"socket of the terminal", errnoOf(err)}
		}
		syscall.SetNonblock(fd, true)
		syscall.Close(n.cons)
		n.cons = fd
	}
	return &making{path: path}, nil
}

// wait keeps what belongs to the answer.
func (mk *making) wait(e *engine, m *wire.Message, conns []int) {
	mk.e, mk.id, mk.kind, mk.conns = e, m.ID, m.Kind, append([]int(nil), conns...)
	for _, a := range m.Attached { // the packet's memory is used again
		a.Preread, a.DetachKeys = append([]byte(nil), a.Preread...), append([]byte(nil), a.DetachKeys...)
		mk.attached = append(mk.attached, a)
	}
}

func (s *Server) isMaking() bool {
	for _, p := range s.procs {
		if p.making != nil {
			return true
		}
	}
	return false
}

// made reaps one known process while there are commands at work, and tells whether there was one. Others are left alone meanwhile: one of them may be what a command made, ended already.
func (s *Server) made() bool {
	if !s.isMaking() {
		return false
	}
	for _, p := range s.procs {
		if p.ended {
			continue
		}
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(p.pid, &status, syscall.WNOHANG, nil)
		if err != nil || pid != p.pid {
			continue
		}
		if p.making == nil {
			p.reaped(status)
		} else {
			p.adopt(status)
		}
		return true
	}
	return false
}

// adopt takes the process over that a command made.
func (p *process) adopt(status syscall.WaitStatus) {
	s, mk := p.s, p.making
	p.making = nil
	pid, err := 0, error(nil)
	if status.ExitStatus() != 0 { // -1 when a signal ended it
		err = &failure{"the command failed", 0}
	} else {
		pid, err = readNumber(mk.path)
	}
	fd := -1
	if err == nil {
		fd, err = openChild(pid)
	}
	if err != nil {
		p.unmade(mk, status, err)
		return
	}
	s.close(p.pidfd)
	p.pid, p.pidfd = pid, fd
	s.watch(fd, epollIn, &p.life)
	p.join(mk.e, mk.attached, mk.conns)
	mk.e.tell(&wire.Message{Kind: wire.Started, ID: mk.id, PID: uint32(pid)}, fd)
	if mk.kind == wire.Launch {
		s.launched()
		return
	}
	p.flow()
}

// unmade ends what was begun for a process that there is not.
func (p *process) unmade(mk *making, status syscall.WaitStatus, err error) {
	closeAll(mk.conns)
	if mk.e.gone { // who asked will never know; another engine learns of an end
		for i := range p.out {
			p.out[i].close() // unread
		}
		p.reaped(status)
		return
	}
	p.drop()
	if mk.kind == wire.Launch {
		p.s.letGo()
	}
	mk.e.fail(mk.id, err)
}

// lastConsole takes the terminal of a process that may have opened it just before it ended.
func (p *process) lastConsole() {
	if p.console != nil && p.console.listening {
		p.console.ready(0)
	}
	if p.console == nil {
		return
	}
	if p.console.listening {
		p.s.close(p.console.fd)
		p.console = nil
		return
	}
	p.console.ready(0)
}

// openChild opens a process that must be ours to reap: the end of another's would never be heard.
func openChild(pid int) (int, error) {
	const byPid, noWait = 1, 0x01000005 // WNOWAIT | WEXITED | WNOHANG
	var info [128]byte
	if _, _, e := syscall.Syscall6(syscall.SYS_WAITID, byPid, uintptr(pid), uintptr(unsafe.Pointer(&info)), noWait, 0, 0); e != 0 {
		return -1, &failure{"the process that the command made is not ours", e}
	}
	fd, e := launch.OpenPid(pid)
	if e != 0 {
		return -1, &failure{"open the process that the command made", e}
	}
	return fd, nil
}

// readNumber reads the file that a command wrote.
func readNumber(path string) (int, error) {
	fd, err := syscall.Open(path, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return 0, &failure{"open the command's file with the number of the process", errnoOf(err)}
	}
	var b [24]byte
	n, errno := read(fd, b[:])
	syscall.Close(fd)
	if errno != 0 {
		return 0, &failure{"read the number of the process", errno}
	}
	pid := 0
	for _, c := range b[:max(n, 0)] {
		if c < '0' || c > '9' {
			break
		}
		pid = pid*10 + int(c-'0')
		if pid > 1<<22 {
			break
		}
	}
	if pid < 2 || pid > 1<<22 {
		return 0, &failure{"the command wrote no number of a process", syscall.EINVAL}
	}
	return pid, nil
}
