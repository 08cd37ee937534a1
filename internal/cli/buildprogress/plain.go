package buildprogress

import (
	"bytes"
	"fmt"
	"slices"
	"time"
)

// plainTail is how many last lines of a failed step plain text repeats at the end.
const plainTail = 10

// patience is how long lines of one step may wait for another's to end.
const patience = 5 * time.Second

// Plain prints steps as blocks of lines, one step at a time:
//
//	#5 [2/6] RUN make
//	#5 0.123 output
//	#5 DONE 1.2s
//
// A step that goes on while another gets its turn is left with "#5 ..." and named again later.
type Plain struct {
	m       *Model
	current *step
	index   int
	out     bytes.Buffer
	turn    time.Time // when the current step got its turn
}

// NewPlain prints a model, from its beginning on.
func NewPlain(m *Model) *Plain {
	m.printing = true
	return &Plain{m: m}
}

// Next gives what is to be printed at the time now; the result is valid until the next call.
func (p *Plain) Next(now time.Time) []byte {
	p.out.Reset()
	var ended []*step
	for _, s := range p.m.order {
		if s.changed && s.completed() && s != p.current {
			ended = append(ended, s)
		}
	}
	slices.SortStableFunc(ended, func(a, b *step) int { return a.stopped().Compare(b.stopped()) })
	if c := p.current; c != nil && c.changed {
		p.print(c, now)
	}
	for _, s := range ended {
		p.print(s, now)
	}
	if next := p.whose(now); next != nil && next != p.current {
		p.print(next, now)
	}
	return p.out.Bytes()
}

// whose is the step that should have the turn: the current one, unless others have waited too long.
func (p *Plain) whose(now time.Time) *step {
	if p.current != nil && now.Sub(p.turn) < patience {
		return p.current
	}
	var first *step
	for _, s := range p.m.order {
		if s == p.current || s.completed() || !s.changed || s.index > 0 && !s.news() {
			continue
		}
		if first == nil || len(s.logs) > 0 && s.idle.Before(first.idle) {
			first = s
		}
	}
	if first == nil {
		return p.current
	}
	if p.current != nil && len(first.logs) == 0 {
		return p.current // nothing to tell but that it began
	}
	return first
}

// news: there is more to tell than that the step goes on.
func (s *step) news() bool { return len(s.logs) > 0 || s.toPrint < len(s.warned) }

// print gives a step the turn and prints what is new of it.
func (p *Plain) print(s *step, now time.Time) {
	if s.index == 0 {
		p.index++
		s.index = p.index
	}
	if s != p.current {
		if p.current != nil {
			fmt.Fprintf(&p.out, "#%d ...\n", p.current.index)
		}
		if p.turn != (time.Time{}) {
			p.out.WriteByte('\n')
		}
		fmt.Fprintf(&p.out, "#%d %s\n", s.index, s.name)
		p.current, p.turn = s, now
	}
	p.parts(s)
	for ; s.toPrint < len(s.warned); s.toPrint++ {
		fmt.Fprintf(&p.out, "#%d WARN: %s\n", s.index, s.warned[s.toPrint])
	}
	if s.completed() && len(s.partial) > 0 {
		p.m.line(s)
	}
	for _, l := range s.logs {
		fmt.Fprintf(&p.out, "#%d %s\n", s.index, l)
	}
	s.logs = s.logs[:0]
	s.changed = false
	if !s.completed() {
		return
	}
	p.current = nil
	switch {
	case s.canceled():
		fmt.Fprintf(&p.out, "#%d CANCELED\n", s.index)
	case s.err != "":
		fmt.Fprintf(&p.out, "#%d ERROR: %s\n", s.index, s.err)
	case s.cached:
		fmt.Fprintf(&p.out, "#%d CACHED\n", s.index)
	default:
		fmt.Fprintf(&p.out, "#%d DONE %.1fs\n", s.index, s.taken(now.Add(-p.m.shift)).Seconds())
	}
}

// Between two lines about one part lie at least so many seconds or so much of the whole.
const (
	partEvery = 5 * time.Second
	partShare = 0.05
)

// parts prints progress that is worth a line.
func (p *Plain) parts(s *step) {
	for _, part := range s.parts {
		if !part.changed || part.printed && part.Completed == nil && !part.moved() {
			continue
		}
		part.changed, part.printed, part.last, part.lastPrinted = false, true, part.Current, part.Timestamp
		text := part.ID
		if progress := part.progress(); progress != "" {
			text += " " + progress
		}
		end := part.Timestamp
		if part.Completed != nil {
			end = *part.Completed
		}
		if part.Started != nil {
			if d := end.Sub(*part.Started); d > 10*time.Millisecond {
				text += fmt.Sprintf(" %.1fs", d.Seconds())
			}
		}
		if part.Completed != nil {
			text += " done"
		}
		fmt.Fprintf(&p.out, "#%d %s\n", s.index, text)
	}
}

func (p *part) moved() bool {
	return p.Timestamp.Sub(p.lastPrinted) >= partEvery || p.Total > 0 && float64(p.Current-p.last)/float64(p.Total) >= partShare
}

// Failures are the last lines of the steps that failed, for the end.
func (m *Model) Failures(lines int) []byte {
	var b bytes.Buffer
	for _, s := range m.order {
		if !s.failed() {
			continue
		}
		if len(s.partial) > 0 {
			m.line(s)
		}
		fmt.Fprintf(&b, "------\n > %s:\n", s.name)
		for _, l := range s.lastLines(lines) {
			fmt.Fprintln(&b, l)
		}
		b.WriteString("------\n")
	}
	return b.Bytes()
}
