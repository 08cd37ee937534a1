package ship

import (
	"regexp"
	"slices"
	"strings"
	"time"

	units "github.com/docker/go-units"

	"corten.dev/corten/internal/errs"
)

// Lines that belong together (a stack trace, a statement over several lines) go out as one message, with newlines between them, where an option says how a message begins:
//
//	multiline-pattern     a regular expression; a line that matches begins a message, others continue the one before
//	multiline-max-bytes   of a joined message (default 64 KiB); what is more begins the next one
//	multiline-wait        how long a message waits for its next line (default 1s)
//
// Lines of the two streams are not joined with each other, and a line of the other stream ends a message. The place in the log stays before a message until it was handed over as a whole.

func joining() []string {
	return []string{"multiline-pattern", "multiline-max-bytes", "multiline-wait"}
}

// Join says which lines become one message; nil: none.
type Join struct {
	Start    *regexp.Regexp
	MaxBytes int
	Wait     time.Duration
}

const (
	joinBytes    = 64 << 10
	maxJoinBytes = 256 << 10 // what goes out at once
	joinWait     = time.Second
	maxPattern   = 4096
)

// setJoin reads one of the options.
func (t *Target) setJoin(name, value string) error {
	if t.Join == nil {
		t.Join = &Join{MaxBytes: joinBytes, Wait: joinWait}
	}
	invalid := func(want string) error {
		return errs.New(errs.Invalid, "invalid value for %s: %q: %s", name, value, want)
	}
	switch name {
	case "multiline-pattern":
		start, err := regexp.Compile(value)
		if err != nil || value == "" || len(value) > maxPattern {
			return invalid("want a regular expression that the first line of a message matches")
		}
		t.Join.Start = start
	case "multiline-max-bytes":
		n, err := units.RAMInBytes(value)
		if err != nil || n < 1 || n > maxJoinBytes {
			return invalid("want a size of at most " + units.BytesSize(maxJoinBytes))
		}
		t.Join.MaxBytes = int(n)
	case "multiline-wait":
		d, err := time.ParseDuration(value)
		if err != nil || d <= 0 || d > time.Minute {
			return invalid("want a time of at most 1m, as 500ms")
		}
		t.Join.Wait = d
	}
	return nil
}

// checkJoin refuses settings of what is not asked for.
func (t *Target) checkJoin() error {
	if t.Join != nil && t.Join.Start == nil {
		return errs.New(errs.Invalid, "multiline-max-bytes and multiline-wait need multiline-pattern")
	}
	return nil
}

// isJoining tells the options of this file from those that drivers see.
func isJoining(option string) bool {
	return strings.HasPrefix(option, "multiline-") && slices.Contains(joining(), option)
}

// joiner makes one message of lines that belong together. Without a Join it hands on what the cutter cuts.
type joiner struct {
	*cutter
	join *Join

	has    bool
	held   Message // the one that may go on
	data   []byte  // of it
	spare  []byte  // of the one that was handed out last
	behind place
	since  time.Time // when its last line was read
}

// next gives the next message, and the place behind it; false at what is the end for now. The message is valid until the next call.
func (j *joiner) next(m *Message, after *place) (bool, error) {
	if j.join == nil {
		return j.cutter.next(m, after)
	}
	for {
		var line Message
		var at place
		ok, err := j.cutter.next(&line, &at)
		switch {
		case err != nil:
			return false, err
		case !ok:
			if j.has && (j.ended || time.Since(j.since) >= j.join.Wait) {
				j.emit(m, after)
				return true, nil
			}
			return false, nil
		case j.has && j.continues(&line):
			j.data = append(append(j.data, '\n'), line.Line...)
			j.held.Ends = line.Ends
			j.behind, j.since = at, time.Now()
			continue
		}
		full := j.has
		if full {
			j.emit(m, after)
		}
		j.data = append(j.data[:0], line.Line...)
		j.has, j.held, j.behind, j.since = true, line, at, time.Now()
		if full {
			return true, nil
		}
	}
}

func (j *joiner) continues(line *Message) bool {
	return line.Stream == j.held.Stream && !line.Split() && !j.held.Split() && j.held.Ends && !j.join.Start.Match(line.Line) && len(j.data)+1+len(line.Line) <= j.join.MaxBytes
}

// emit hands the held message out; its memory is used again for the one after the next.
func (j *joiner) emit(m *Message, after *place) {
	*m, *after = j.held, j.behind
	m.Line = j.data
	j.data, j.spare = j.spare, j.data
	j.has = false
}

// due is how long it takes until the held message goes out although nothing follows; false when none is held.
func (j *joiner) due() (time.Duration, bool) {
	if !j.has {
		return 0, false
	}
	return max(j.join.Wait-time.Since(j.since), time.Millisecond), true
}
