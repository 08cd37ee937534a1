// Package progress shows the engine's report about long work as docker does: one line for each layer that is redrawn in place on a terminal, each state once in a pipe.
//
// It owns nothing. It promises that an error in the report is returned in the engine's words, that what comes from the engine cannot write control characters to the
// terminal, and that whatever comes is shown at the latest when the stream ends.
package progress

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"unicode"

	"github.com/docker/go-units"

	"corten.dev/corten/internal/errs"
)

// Screen is where to draw.
type Screen struct {
	Out  io.Writer
	Live bool              // a terminal: lines are redrawn
	Wide func() (cols int) // of the terminal; asked for each line, because people resize it. Nil is wide.
	// Aux gets what the engine adds for programs; nil ignores it.
	Aux func(json.RawMessage)
}

// message is one line of the engine's report.
type message struct {
	Stream      string          `json:"stream"`
	Status      string          `json:"status"`
	ID          string          `json:"id"`
	Detail      *detail         `json:"progressDetail"`
	Error       string          `json:"error"`
	Aux         json.RawMessage `json:"aux"`
	ErrorDetail *struct {
		Message string `json:"message"`
	} `json:"errorDetail"`
}

type detail struct {
	Current int64 `json:"current"`
	Total   int64 `json:"total"`
}

// Show reads the report to its end.
func (s Screen) Show(r io.Reader) error {
	d := drawing{Screen: s, w: bufio.NewWriter(s.Out), rows: map[string]int{}}
	dec := json.NewDecoder(r)
	for {
		var m message
		if err := dec.Decode(&m); err == io.EOF {
			return d.w.Flush()
		} else if err != nil {
			_ = d.w.Flush() // the reading failed, which says more
			return fmt.Errorf("read progress: %w", err)
		}
		if m.ErrorDetail != nil && m.ErrorDetail.Message != "" {
			m.Error = m.ErrorDetail.Message
		}
		if m.Error != "" {
			if err := d.w.Flush(); err != nil {
				return err
			}
			return errs.New(errs.Unavailable, "%s", clean(m.Error))
		}
		if m.Aux != nil {
			if s.Aux != nil {
				s.Aux(m.Aux)
			}
			continue
		}
		d.show(m)
		// One write for each message, and none that shows half of one.
		if err := d.w.Flush(); err != nil {
			return err
		}
	}
}

// drawing knows which line belongs to which layer. The cursor is always on the line below the last one.
type drawing struct {
	Screen
	w    *bufio.Writer
	rows map[string]int
}

func (d *drawing) show(m message) {
	switch {
	case m.Stream != "":
		d.rows = map[string]int{}
		fmt.Fprint(d.w, cleanLines(m.Stream))
	case m.ID == "" || m.Detail == nil:
		// Lines that stay: what was drawn above is history now.
		d.rows = map[string]int{}
		fmt.Fprintf(d.w, "%s%s\n", prefix(m.ID), clean(m.Status))
	case d.Live:
		d.redraw(m)
	case m.Detail.Current <= 0 && m.Detail.Total <= 0:
		fmt.Fprintf(d.w, "%s%s\n", prefix(m.ID), clean(m.Status))
	}
}

// redraw goes up to the layer's line, writes it anew, and comes back.
func (d *drawing) redraw(m message) {
	row, known := d.rows[m.ID]
	if !known {
		row = len(d.rows)
		d.rows[m.ID] = row
		fmt.Fprint(d.w, "\n")
	}
	up := len(d.rows) - row
	fmt.Fprintf(d.w, "\x1b[%dA\x1b[2K\r%s%s %s\r\x1b[%dB", up, prefix(m.ID), clean(m.Status), d.bar(*m.Detail), up)
}

// barWidth is the least width of a terminal that has room for the bar besides the numbers.
const barWidth = 110

// bar is "[=====>     ]  1.5MB/3MB"; nothing when nothing is known.
func (d *drawing) bar(p detail) string {
	if p.Current <= 0 && p.Total <= 0 {
		return ""
	}
	done := units.HumanSize(float64(p.Current))
	if p.Total <= 0 || p.Current > p.Total {
		return fmt.Sprintf("%8v", done)
	}
	numbers := fmt.Sprintf("%8v/%v", done, units.HumanSize(float64(p.Total)))
	if d.Wide != nil && d.Wide() <= barWidth {
		return numbers
	}
	const full = 50
	n := int(float64(max(p.Current, 0)) / float64(p.Total) * full)
	return "[" + strings.Repeat("=", n) + ">" + strings.Repeat(" ", full-n) + "] " + numbers
}

func prefix(id string) string {
	if id == "" {
		return ""
	}
	return clean(id) + ": "
}

// clean takes out what could move the cursor or change colours.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return -1
		}
		return r
	}, s)
}

func cleanLines(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) && r != '\n' && r != '\t' && r != '\r' {
			return -1
		}
		return r
	}, s)
}
