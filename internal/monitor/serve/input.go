package serve

import "syscall"

// input is the process's stdin: a pipe, or the master of its terminal.
type input struct {
	p    *process
	fd   int
	wait queue // bytes that the process did not take yet; while there are any, no client's stdin is read
	eof  bool  // close once wait is empty
}

// ready is for a pipe; a terminal's master is watched by master.
func (in *input) ready(events uint32) {
	if events&syscall.EPOLLERR != 0 { // the process closed its stdin
		in.close()
		return
	}
	in.flush()
}

// write passes bytes on, or keeps them.
func (in *input) write(b []byte) {
	if in.fd < 0 || in.eof {
		return
	}
	in.p.asked = true
	if in.wait.len() == 0 {
		n, errno := write(in.fd, b)
		if errno != 0 && errno != syscall.EAGAIN {
			in.close()
			return
		}
		if errno == 0 {
			b = b[n:]
		}
	}
	if len(b) > 0 {
		in.wait.add(b)
		in.p.flow()
	}
}

func (in *input) flush() {
	for in.wait.len() > 0 && in.fd >= 0 {
		n, errno := write(in.fd, in.wait.bytes())
		if errno == syscall.EAGAIN {
			return
		}
		if errno != 0 {
			in.close()
			return
		}
		in.wait.drop(n)
	}
	in.wait.free()
	if in.eof {
		in.close()
		return
	}
	in.p.flow()
	in.release()
}

// release lets the clients that waited for the process go on.
func (in *input) release() {
	for _, c := range in.p.s.clients {
		if c.p == in.p {
			c.rewatch()
		}
	}
}

// end closes stdin when what was sent before is written.
func (in *input) end() {
	in.eof = true
	if in.wait.len() == 0 {
		in.close()
	}
}

// close closes stdin now.
func (in *input) close() {
	if in.fd < 0 {
		in.wait.free() // what was typed for a terminal that never came
		return
	}
	if in.p.terminal && in.p.out[0].fd >= 0 {
		in.p.s.unwatch(in.fd)
		in.p.out[0].fd = -1
	}
	in.p.s.close(in.fd)
	in.fd = -1
	in.wait.free()
	in.release()
}

// close0 closes a pipe whose reader ended; a terminal's master is still to be read.
func (in *input) close0() {
	if !in.p.terminal {
		in.close()
	}
}

// endStdin is the engine's CloseStdin, and the end of the client that had stdin.
func (p *process) endStdin() {
	if !p.terminal {
		p.in.end()
	}
}
