// Package buildprogress shows how a build goes, as BuildKit's tools do: a live view, plain text, JSON, or nothing.
//
// It owns the picture of a build made from the stream of its status ([Model]), and the two ways to draw it: both are functions of that picture and of a time that is passed in, so that
// tests replay recorded streams. It promises that nothing that happened is missing at the end, that a step is shown in the order in which it began, and that drawing never waits.
package buildprogress

import (
	"bytes"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Status is what happened since the last one; the JSON is that of BuildKit's clients.
type Status struct {
	Vertexes []Vertex  `json:"vertexes,omitempty"`
	Parts    []Part    `json:"statuses,omitempty"`
	Logs     []Log     `json:"logs,omitempty"`
	Warnings []Warning `json:"warnings,omitempty"`
}

// Vertex is the state of one step.
type Vertex struct {
	Digest    string     `json:"digest"`
	Name      string     `json:"name"`
	Started   *time.Time `json:"started"`
	Completed *time.Time `json:"completed"`
	Cached    bool       `json:"cached"`
	Error     string     `json:"error"`
	Group     *Group     `json:"progressGroup"`
}

// Group joins steps that people see as one. Weak steps alone do not make it appear.
type Group struct {
	ID   string `json:"id"`
	Name string `json:"name"`
	Weak bool   `json:"weak"`
}

// Part is a piece of a step with a progress of its own.
type Part struct {
	ID        string     `json:"id"`
	Vertex    string     `json:"vertex"`
	Name      string     `json:"name"`
	Current   int64      `json:"current"`
	Total     int64      `json:"total"`
	Timestamp time.Time  `json:"timestamp"`
	Started   *time.Time `json:"started"`
	Completed *time.Time `json:"completed"`
}

// Log is output of a step.
type Log struct {
	Vertex    string    `json:"vertex"`
	Stream    int       `json:"stream"`
	Data      []byte    `json:"data"`
	Timestamp time.Time `json:"timestamp"`
}

// Warning is a finding of the linter or of a step.
type Warning struct {
	Vertex string   `json:"vertex"`
	Level  int      `json:"level"`
	Short  []byte   `json:"short"`
	Detail [][]byte `json:"detail"`
	URL    string   `json:"url"`
	Source *Source  `json:"sourceInfo"`
	Ranges []Range  `json:"range"`
}

// Model is the picture of a build, or of several at once.
type Model struct {
	// Keep is how many of a step's last lines are kept for the end.
	Keep int

	steps    map[string]*step // by digest, and by group
	order    []*step          // as they began
	warnings []Warning
	printing bool          // every line is wanted, until it is printed; else only the last ones are kept
	shift    time.Duration // our clock less the engine's
	began    time.Time     // by our clock; zero before anything began
}

// step is a vertex or a group of them.
type step struct {
	name    string
	index   int // "#5", given when it is first printed
	spans   []span
	cached  bool
	err     string
	parts   []*part
	byID    map[string]*part
	logs    []string // not yet printed lines (plain text)
	partial []byte   // a line that has not ended
	begun   time.Time
	tail    []string // the last lines
	warned  []string
	toPrint int // warnings printed already
	hidden  bool
	shown   bool // is in order
	members map[string]Vertex
	changed bool // since it was last printed
	idle    time.Time
}

// span is one time that the step worked.
type span struct {
	start time.Time
	stop  time.Time // zero: still at it
}

type part struct {
	Part
	printed     bool
	last        int64
	lastPrinted time.Time
	changed     bool
}

// NewModel makes an empty picture.
func NewModel(keep int) *Model { return &Model{Keep: keep, steps: map[string]*step{}} }

// Warnings are all that came. The same finding at several steps, or for several platforms, is one.
func (m *Model) Warnings() (list []Warning) {
	for _, w := range m.warnings {
		same := func(one Warning) bool { one.Vertex = w.Vertex; return reflect.DeepEqual(one, w) }
		if !slices.ContainsFunc(list, same) {
			list = append(list, w)
		}
	}
	return list
}

// Apply adds what happened. The prefix, if any, is put into the names: it tells builds apart.
func (m *Model) Apply(st *Status, prefix string, now time.Time) {
	for i := range st.Vertexes {
		v := st.Vertexes[i]
		v.Name = prefixed(prefix, v.Name)
		if v.Started != nil && m.began.IsZero() {
			m.began, m.shift = now, now.Sub(*v.Started)
		}
		if v.Group != nil {
			m.member(&v, prefix)
			continue
		}
		s := m.step(v.Digest)
		m.vertex(s, &v)
	}
	for i := range st.Parts {
		m.part(&st.Parts[i])
	}
	for _, w := range st.Warnings {
		m.warnings = append(m.warnings, w)
		if s := m.steps[w.Vertex]; s != nil {
			s.warned = append(s.warned, string(w.Short))
			s.changed = true
		}
	}
	for i := range st.Logs {
		if s := m.steps[st.Logs[i].Vertex]; s != nil {
			m.log(s, &st.Logs[i], now)
		}
	}
}

// Cancel ends what runs: nobody will tell its end any more.
func (m *Model) Cancel(now time.Time) {
	engine := now.Add(-m.shift)
	for _, s := range m.order {
		if s.completed() {
			continue
		}
		for i := range s.spans {
			if s.spans[i].stop.IsZero() {
				s.spans[i].stop = engine
			}
		}
		s.err, s.changed = "context canceled", true
	}
}

// prefixed writes "[app 2/6] RUN x" for "[2/6] RUN x".
func prefixed(prefix, name string) string {
	switch {
	case prefix == "":
		return name
	case strings.HasPrefix(name, "["):
		return "[" + prefix + " " + name[1:]
	}
	return "[" + prefix + "] " + name
}

func (m *Model) step(digest string) *step {
	s := m.steps[digest]
	if s == nil {
		s = &step{byID: map[string]*part{}}
		m.steps[digest] = s
	}
	return s
}

func (m *Model) vertex(s *step, v *Vertex) {
	if v.Started == nil && s.started() { // a second announcement
		return
	}
	if s.name != v.Name || s.cached != v.Cached || s.err != v.Error {
		s.name, s.cached, s.err = v.Name, v.Cached, v.Error
		s.changed = true
	}
	if v.Started == nil {
		return
	}
	if s.work(*v.Started, v.Completed) {
		s.changed = true
	}
	m.show(s)
}

func (m *Model) show(s *step) {
	if !s.shown && !s.hidden {
		s.shown = true
		m.order = append(m.order, s)
	}
}

// work notes a span, and tells whether that is new.
func (s *step) work(start time.Time, stop *time.Time) bool {
	end := time.Time{}
	if stop != nil {
		end = *stop
	}
	for i := range s.spans {
		if s.spans[i].start.Equal(start) {
			if s.spans[i].stop.Equal(end) {
				return false
			}
			s.spans[i].stop = end
			return true
		}
	}
	s.spans = append(s.spans, span{start, end})
	slices.SortFunc(s.spans, func(a, b span) int { return a.start.Compare(b.start) })
	return true
}

// member updates the step that a group of vertexes is.
func (m *Model) member(v *Vertex, prefix string) {
	g := m.step("group:" + v.Group.ID)
	if g.members == nil {
		g.members, g.hidden = map[string]Vertex{}, true
	}
	m.steps[v.Digest] = g
	g.members[v.Digest] = *v
	g.name, g.cached, g.err = prefixed(prefix, v.Group.Name), true, ""
	for _, one := range g.members {
		g.cached = g.cached && one.Cached
		if g.err == "" {
			g.err = one.Error
		}
		if one.Error != "" || one.Started != nil && !one.Group.Weak {
			g.hidden = false
		}
	}
	if v.Started != nil {
		g.work(*v.Started, v.Completed)
		m.show(g)
	}
	g.changed = true
}

func (m *Model) part(p *Part) {
	s := m.steps[p.Vertex]
	if s == nil {
		return
	}
	known := s.byID[p.ID]
	if known == nil {
		known = &part{}
		s.byID[p.ID] = known
		s.parts = append(s.parts, known)
	}
	known.Part, known.changed = *p, true
	s.changed = true
}

// maxLine bounds a line of a step that never ends one.
const maxLine = 64 << 10

func (m *Model) log(s *step, l *Log, now time.Time) {
	if len(s.logs) == 0 {
		s.idle = now
	}
	data := l.Data
	for len(data) > 0 {
		if len(s.partial) == 0 {
			s.begun = l.Timestamp
		}
		i := bytes.IndexByte(data, '\n')
		if i < 0 {
			s.partial = append(s.partial, data...)
			if len(s.partial) > maxLine {
				m.line(s)
			}
			break
		}
		s.partial = append(s.partial, data[:i]...)
		data = data[i+1:]
		m.line(s)
	}
	s.changed = true
}

// line ends the line that is being gathered.
func (m *Model) line(s *step) {
	after := time.Duration(0)
	if len(s.spans) > 0 {
		after = s.begun.Sub(s.spans[len(s.spans)-1].start)
	}
	text := seconds(after) + " " + strings.TrimSuffix(string(s.partial), "\r")
	s.partial = s.partial[:0]
	if m.printing {
		s.logs = append(s.logs, text)
	}
	s.tail = append(s.tail, text)
	if len(s.tail) >= 2*max(m.Keep, tailLines) {
		s.tail = append(s.tail[:0], s.tail[len(s.tail)-max(m.Keep, tailLines):]...)
	}
}

// seconds is a time with as many decimals as make sense.
func seconds(d time.Duration) string {
	sec := d.Seconds()
	switch {
	case sec < 10:
		return strconv.FormatFloat(max(sec, 0), 'f', 3, 64)
	case sec < 100:
		return strconv.FormatFloat(sec, 'f', 2, 64)
	}
	return strconv.FormatFloat(sec, 'f', 1, 64)
}

func (s *step) started() bool { return len(s.spans) > 0 }

// completed: the last span has ended, and none other is open.
func (s *step) completed() bool {
	for _, sp := range s.spans {
		if sp.stop.IsZero() {
			return false
		}
	}
	return s.started()
}

// canceled tells errors that are nobody's fault.
func (s *step) canceled() bool { return strings.HasSuffix(s.err, "context canceled") }

func (s *step) failed() bool { return s.err != "" && !s.canceled() }

// taken is how long the step worked; spans that overlap count once. now is the engine's.
func (s *step) taken(now time.Time) time.Duration {
	var sum time.Duration
	var until time.Time
	for _, sp := range s.spans {
		start, stop := sp.start, sp.stop
		if stop.IsZero() {
			stop = now
		}
		if start.Before(until) {
			start = until
		}
		if stop.After(start) {
			sum += stop.Sub(start)
			until = stop
		}
	}
	return sum
}

// stopped is when the step ended last.
func (s *step) stopped() (last time.Time) {
	for _, sp := range s.spans {
		if sp.stop.After(last) {
			last = sp.stop
		}
	}
	return last
}

// counts are the steps that have ended, and all that are known.
func (m *Model) counts() (done, total int) {
	seen := map[*step]bool{}
	for _, s := range m.steps {
		if seen[s] || s.hidden {
			continue
		}
		seen[s] = true
		total++
		if s.completed() {
			done++
		}
	}
	return done, total
}

// lastLines are what a failed step said at last.
func (s *step) lastLines(n int) []string { return s.tail[max(0, len(s.tail)-n):] }

// size writes a number of bytes.
func size(n int64) string {
	if n < 1000 {
		return strconv.FormatInt(n, 10) + "B"
	}
	f := float64(n)
	for _, unit := range []string{"kB", "MB", "GB", "TB"} {
		if f /= 1000; f < 1000 || unit == "TB" {
			return strconv.FormatFloat(f, 'f', 2, 64) + unit
		}
	}
	return ""
}

// progress is "3.20MB / 5.00MB", or what is known of it.
func (p *part) progress() string {
	switch {
	case p.Total != 0:
		return size(p.Current) + " / " + size(p.Total)
	case p.Current != 0:
		return size(p.Current)
	}
	return ""
}
