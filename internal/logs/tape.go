package logs

import (
	"fmt"

	"corten.dev/corten/internal/logs/logfile"
)

// Place is a place between two records of a log, good for a later engine too. The zero value is the beginning of the log.
type Place struct {
	File   int64    // number of the file; 0: the lowest there is
	Offset int64    // of the next record in it
	Lines  [4]int64 // complete lines before, by stream, since the log began
	Time   int64    // latest time before, ns
}

// Piece is one record: part of a line, a line or many, of one stream.
type Piece struct {
	Stream    int
	Time      int64 // ns
	Data      []byte
	At, After Place
	// Missed is how many complete lines went with files that are not there any more, between the piece before and this one; Gap says that there was such a hole.
	// Mid has bit 1<<stream set for the streams whose first bytes behind the hole are the rest of a line that went.
	Gap    bool
	Missed int64
	Mid    uint8
}

// Tape walks the records of a log from a place on: the reader of those who hand a log on and must know how far they are. One goroutine at a time.
type Tape struct {
	cur cursor
	at  Place
	gap Piece // what the next piece is told of a hole
}

// tapeBuffer is smaller than a reader's buffer, because each follower has one; it grows for larger records.
const tapeBuffer = 64 << 10

// OpenTape begins at a place of the log in dir. The folder may be empty, or not there yet.
func OpenTape(dir string, from Place) *Tape {
	return &Tape{cur: cursor{dir: dir, size: tapeBuffer}, at: from}
}

// Next reads the next record; false at what is the end for now. p.Data is valid until the next call.
func (t *Tape) Next(p *Piece) (bool, error) {
	if t.cur.f == nil {
		if ok, err := t.begin(); !ok || err != nil {
			return false, t.name(err)
		}
	}
	var r logfile.Record
	ok, err := t.cur.next(&r)
	if err != nil {
		return false, t.name(err)
	}
	if t.cur.num != t.at.File {
		t.enter()
	}
	if !ok {
		return false, nil
	}
	*p = t.gap
	t.gap = Piece{}
	p.Stream, p.Time, p.Data, p.At = r.Stream, r.Time, r.Data, t.at
	pos := logfile.Position{Latest: t.at.Time, Lines: t.at.Lines}
	pos.Advance(0, &r)
	t.at.Lines, t.at.Time, t.at.Offset = pos.Lines, pos.Latest, t.cur.at()
	p.After = t.at
	return true, nil
}

func (t *Tape) name(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("log %s: %w", t.cur.dir, err)
}

// begin goes to the place that the tape was opened at, or to the first record behind it that is still there.
func (t *Tape) begin() (bool, error) {
	ok, err := t.cur.begin(t.at.File)
	if !ok || err != nil {
		return false, err
	}
	if t.cur.num != t.at.File {
		t.enter()
		return true, nil
	}
	if t.at.Offset <= logfile.HeaderSize {
		return true, nil
	}
	st, err := t.cur.f.Stat()
	if err != nil {
		return false, err
	}
	if st.Size() >= t.at.Offset {
		t.cur.seek(t.at.Offset)
		return true, nil
	}
	return true, t.after(t.at.Time)
}

// after is for a file that is shorter than it was, after a power cut: it goes to the first record that is younger than what was read before.
func (t *Tape) after(ns int64) error {
	t.at = Place{File: t.cur.num, Offset: logfile.HeaderSize, Lines: t.cur.head.Lines, Time: ns}
	var r logfile.Record
	for {
		ok, err := t.cur.fits(&r, ns)
		if !ok || err != nil {
			return err
		}
		pos := logfile.Position{Lines: t.at.Lines}
		pos.Advance(0, &r)
		t.at.Lines, t.at.Offset = pos.Lines, t.cur.at()
	}
}

// enter notes that reading goes on in another file than before, and what is missing between.
func (t *Tape) enter() {
	head := &t.cur.head
	var missed int64
	for s := range head.Lines {
		missed += max(head.Lines[s]-t.at.Lines[s], 0)
	}
	if t.cur.gap || missed > 0 {
		t.cur.gap = false
		t.gap = Piece{Gap: true, Missed: t.gap.Missed + missed, Mid: head.Mid}
	}
	t.at.File, t.at.Offset, t.at.Lines = t.cur.num, logfile.HeaderSize, head.Lines
}

// Idle gives the buffer back while there is nothing to read.
func (t *Tape) Idle() {
	if t.cur.r == t.cur.w && t.cur.f != nil {
		t.cur.seek(t.cur.at())
		t.cur.buf = nil
	}
}

// Close closes the files.
func (t *Tape) Close() { t.cur.close() }
