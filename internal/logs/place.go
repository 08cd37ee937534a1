package logs

import "corten.dev/corten/internal/logs/logfile"

// streams is the set of streams that are asked for, as bits 1<<stream.
func (o *ReadOptions) streams() (set uint8) {
	if o.Stdout {
		set |= 1 << logfile.Stdout
	}
	if o.Stderr {
		set |= 1<<logfile.Stderr | 1<<logfile.Notice
	}
	return set
}

func count(p *logfile.Position, set uint8) (n int64) {
	for s := logfile.Stdout; s <= logfile.Notice; s++ {
		if set&(1<<s) != 0 {
			n += p.Lines[s]
		}
	}
	return n
}

func bits(b uint8) (n int64) {
	for ; b != 0; b &= b - 1 {
		n++
	}
	return n
}

// place puts the cursor where reading begins, and says how many lines are still to be skipped from there.
//
// A place is good when no line that is asked for stands unfinished there; else an earlier one is taken. Only at the lowest file there is none, and the rest of a line
// whose beginning is gone is skipped.
func (l *Log) place() (skip int64, err error) {
	files, err := l.cur.numbers()
	if err != nil || len(files) == 0 {
		return 0, err
	}
	set := l.opts.streams()
	good := func(p *logfile.Position) bool { return p.Mid&set == 0 }
	if l.opts.Tail >= 0 {
		end, err := l.end(files)
		if err != nil {
			return 0, err
		}
		want := count(&end, set) + bits(end.Mid&set) - int64(l.opts.Tail)
		if !l.opts.Follow { // what is written from here on would be more than the last lines
			stop := place{l.cur.num, l.cur.at()}
			defer func() { l.cur.stop = stop }()
		}
		at, err := l.seekLast(files, func(p *logfile.Position) bool { return good(p) && count(p, set) <= want })
		return max(want-count(&at, set)-bits(at.Mid&set), 0), err // what has lost its beginning is not counted
	}
	if !l.opts.Since.IsZero() {
		since := l.opts.Since.UnixNano()
		_, err := l.seekLast(files, func(p *logfile.Position) bool { return good(p) && p.Latest != 0 && p.Latest < since })
		return 0, err
	}
	return 0, l.seekFirst(files)
}

func (l *Log) seekFirst(files []int64) error {
	for _, n := range files {
		if ok, err := l.cur.open(n); ok || err != nil {
			return err
		}
	}
	return nil
}

// seekLast goes to the last indexed place that fits, and else to the beginning.
func (l *Log) seekLast(files []int64, fits func(*logfile.Position) bool) (logfile.Position, error) {
	for i := len(files) - 1; i >= 0; i-- {
		ok, err := l.cur.open(files[i])
		if err != nil {
			return logfile.Position{}, err
		}
		if !ok {
			continue
		}
		all := l.cur.index()
		for k := len(all) - 1; k >= 0; k-- {
			if fits(&all[k]) {
				l.cur.seek(all[k].Offset)
				return all[k], nil
			}
		}
	}
	err := l.seekFirst(files)
	return l.cur.head, err
}

// End is the place behind what is in the log now; the zero value when there is none yet.
func End(dir string) (Place, error) {
	l := &Log{cur: cursor{dir: dir, size: tapeBuffer}}
	defer l.cur.close()
	files, err := l.cur.numbers()
	if err != nil || len(files) == 0 {
		return Place{}, err
	}
	at, err := l.end(files)
	if err != nil || l.cur.f == nil {
		return Place{}, err
	}
	return Place{File: l.cur.num, Offset: at.Offset, Lines: at.Lines, Time: at.Latest}, nil
}

// end is the position behind the last record.
func (l *Log) end(files []int64) (logfile.Position, error) {
	at, err := l.seekLast(files, func(*logfile.Position) bool { return true })
	if err != nil || l.cur.f == nil {
		return at, err
	}
	num := l.cur.num
	var r logfile.Record
	for {
		ok, err := l.cur.next(&r)
		if err != nil || !ok {
			return at, err
		}
		if l.cur.num != num { // the lines before it are all counted: its own header says the same
			num = l.cur.num
			at = l.cur.head
		}
		at.Advance(logfile.RecordHead+len(r.Data), &r)
	}
}
