package buildprogress

import (
	"bytes"
	"fmt"
	"strings"
	"time"
	"unicode"
)

// What colours and moves the terminal.
const (
	plain      = "\x1b[0m"
	blue       = "\x1b[34m"
	red        = "\x1b[31m"
	yellow     = "\x1b[33m"
	faint      = "\x1b[2m"
	hideCursor = "\x1b[?25l"
	showCursor = "\x1b[?25h"
	toLineEnd  = "\x1b[K"
	toEnd      = "\x1b[J"
)

// tailLines is how many last lines of a running step the live view shows.
const tailLines = 6

// Live draws the picture again and again in the same place:
//
//	[+] Building 1.2s (5/8)
//	 => [internal] load build definition from Dockerfile        0.0s
//	 => CACHED [1/6] FROM docker.io/library/debian:12           0.0s
//	 => [2/6] RUN make                                          1.1s
//	 => => # the last lines that it wrote
type Live struct {
	m      *Model
	colour bool
	title  string
	drawn  []int // widths of the lines on the screen, of the last frame
	out    bytes.Buffer
}

// NewLive draws a model; title is the verb of the first line ("Building").
func NewLive(m *Model, title string, colour bool) *Live {
	return &Live{m: m, title: title, colour: colour}
}

// row is one line of the view.
type row struct {
	text, right string
	colour      string
	running     bool
	of          *step // for rows of a step itself
}

// Frame gives the bytes that replace the last frame by that of the time now. The last frame has all steps, whatever the height.
func (v *Live) Frame(now time.Time, width, height int, last bool) []byte {
	v.out.Reset()
	width, height = max(width, 1), max(height, 4)
	v.out.WriteString(hideCursor)
	if up := v.above(width); up > 0 {
		fmt.Fprintf(&v.out, "\x1b[%dA", up)
	}
	v.out.WriteByte('\r')
	v.drawn = v.drawn[:0]
	done, total := v.m.counts()
	head := fmt.Sprintf("[+] %s %.1fs (%d/%d)", v.title, v.elapsed(now).Seconds(), done, total)
	if last && done > 0 && done == total {
		head += " FINISHED"
	}
	v.line(fit(head, width), "")
	for _, r := range v.rows(now, height, last) {
		v.draw(r, width)
	}
	v.out.WriteString(toEnd + showCursor)
	return v.out.Bytes()
}

// above is how many lines of the screen the last frame takes at this width; terminals wrap lines anew when they become narrower.
func (v *Live) above(width int) (n int) {
	for _, w := range v.drawn {
		n += max(1, (w+width-1)/width)
	}
	return n
}

func (v *Live) elapsed(now time.Time) time.Duration {
	if v.m.began.IsZero() {
		return 0
	}
	return now.Sub(v.m.began)
}

// rows chooses what fits: lines of running steps come before those of ended ones, and later before earlier.
func (v *Live) rows(now time.Time, height int, last bool) []row {
	engine := now.Add(-v.m.shift)
	var all []row
	running := 0
	for _, s := range v.m.order {
		for _, r := range v.stepRows(s, engine) {
			all = append(all, r)
			if r.running {
				running++
			}
		}
	}
	if last {
		return all
	}
	room := height - 2
	if len(all) > room {
		all = crop(all, room)
	}
	return v.withTails(all, room-len(all), room-running)
}

// crop drops ended rows from the top first, then whatever is at the top.
func crop(all []row, room int) []row {
	drop := len(all) - room
	var out []row
	for _, r := range all {
		if drop > 0 && !r.running {
			drop--
			continue
		}
		out = append(out, r)
	}
	return out[max(0, len(out)-room):]
}

// withTails adds last lines of running steps; ended rows give way to them.
func (v *Live) withTails(rows []row, free, most int) []row {
	var out []row
	for _, r := range rows {
		out = append(out, r)
		if r.of == nil || !r.running {
			continue
		}
		lines := r.of.lastLines(tailLines)
		if len(r.of.partial) > 0 {
			lines = append(lines[max(0, len(lines)+1-tailLines):len(lines):len(lines)], "- "+string(r.of.partial))
		}
		if len(lines) == 0 || most < len(lines) {
			continue
		}
		most -= len(lines)
		free -= len(lines)
		for _, l := range lines {
			_, text, _ := strings.Cut(l, " ")
			out = append(out, row{text: " => => # " + printable(text), colour: faint, running: true})
		}
	}
	if free < 0 {
		out = crop(out, len(out)+free)
	}
	return out
}

// stepRows are the step and its parts.
func (v *Live) stepRows(s *step, engine time.Time) []row {
	if !s.started() {
		return nil
	}
	r := row{text: printable(s.name), right: tenths(s.taken(engine)), running: !s.completed(), of: s}
	if s.cached {
		r.text = "CACHED " + r.text
	}
	switch {
	case s.canceled():
		r.text, r.colour = "CANCELED "+r.text, yellow
	case s.err != "":
		r.text, r.colour = "ERROR "+r.text, red
	case !r.running:
		r.colour = blue
	}
	r.text = " => " + r.text
	list := []row{r}
	for _, p := range s.parts {
		if p.Started == nil {
			continue
		}
		end := engine
		if p.Completed != nil {
			end = *p.Completed
		}
		pr := row{text: " => => " + printable(p.ID), right: tenths(end.Sub(*p.Started)), running: p.Completed == nil && r.running}
		if progress := p.progress(); progress != "" {
			pr.text += " " + progress
		}
		if !pr.running {
			pr.colour = blue
		}
		list = append(list, pr)
	}
	for _, w := range s.warned {
		list = append(list, row{text: " => WARN: " + printable(w), right: tenths(s.taken(engine)), colour: yellow})
	}
	return list
}

// tenths is a duration in seconds; what takes no time takes 0.0.
func tenths(d time.Duration) string {
	if d < 50*time.Millisecond {
		d = 0
	}
	return fmt.Sprintf("%.1fs", d.Seconds())
}

func (v *Live) draw(r row, width int) {
	text := fit(r.text, width)
	if r.right != "" {
		room := width - len(r.right) - 1
		if room < 12 { // too narrow for times
			text = fit(r.text, width)
		} else {
			text = fit(r.text, room)
			text += strings.Repeat(" ", room-wide(text)+1) + r.right
		}
	}
	v.line(text, r.colour)
}

func (v *Live) line(text, colour string) {
	v.drawn = append(v.drawn, wide(text))
	if colour != "" && v.colour {
		text = colour + text + plain
	}
	v.out.WriteString(text + toLineEnd + "\n")
}

// fit cuts a text to a width.
func fit(text string, width int) string {
	n := 0
	for i, r := range text {
		if n += cells(r); n > width {
			return text[:i]
		}
	}
	return text
}

// wide is how many cells of the terminal a text takes.
func wide(text string) (n int) {
	for _, r := range text {
		n += cells(r)
	}
	return n
}

// cells is 2 for the scripts of East Asia and for pictures.
func cells(r rune) int {
	switch {
	case r < 0x1100:
		return 1
	case r <= 0x115f, r >= 0x2e80 && r <= 0xa4cf, r >= 0xac00 && r <= 0xd7a3, r >= 0xf900 && r <= 0xfaff, r >= 0xfe30 && r <= 0xfe6f, r >= 0xff00 && r <= 0xff60,
		r >= 0xffe0 && r <= 0xffe6, r >= 0x1f300 && r <= 0x1faff, r >= 0x20000 && r <= 0x3fffd:
		return 2
	}
	return 1
}

// printable is a line as a terminal would leave it, without what moves the cursor or colours: after a carriage return it is written over.
func printable(text string) string {
	text = strings.TrimRight(text, "\r")
	if i := strings.LastIndexByte(text, '\r'); i >= 0 {
		text = text[i+1:]
	}
	if !strings.ContainsFunc(text, func(r rune) bool { return unicode.IsControl(r) || r == unicode.ReplacementChar }) {
		return text
	}
	var b strings.Builder
	state := byte(0)
	for _, r := range text {
		switch {
		case state == 0x1b && (r == '[' || r == ']'):
			state = byte(r)
		case state == 0x1b:
			state = 0
		case state == '[':
			if r >= 0x40 && r <= 0x7e {
				state = 0
			}
		case state == ']':
			if r == 7 {
				state = 0
			} else if r == 0x1b {
				state = 0x1b
			}
		case r == 0x1b:
			state = 0x1b
		case r == '\t':
			b.WriteString("    ")
		case unicode.IsControl(r):
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}
