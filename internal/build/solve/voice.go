package solve

import (
	"sync"
	"time"

	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/build"
)

// voice tells of one vertex in one job. It is told as started when there is the first thing to tell, and may start again when it is ended.
type voice struct {
	rep    *reporter
	dgst   digest.Digest
	name   string
	inputs []digest.Digest
	group  *pb.ProgressGroup

	mu      sync.Mutex // guards what follows
	open    bool
	started time.Time
	process string
	parts   map[string]time.Time // when a part was first heard of
	clips   clips
}

func newVoice(rep *reporter, v *build.Vertex) *voice {
	o := &voice{rep: rep, dgst: v.Digest, name: v.Name, group: v.Meta.ProgressGroup}
	for _, in := range v.Inputs {
		o.inputs = append(o.inputs, in.Vertex.Digest)
	}
	return o
}

// status is the vertex without a state: as it is told first.
func (o *voice) status() build.VertexStatus {
	return build.VertexStatus{Digest: o.dgst, Inputs: o.inputs, Name: o.name, Group: o.group}
}

// begin tells that the vertex has started, unless it has.
func (o *voice) begin(at time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.open {
		return
	}
	o.open, o.started = true, at
	st := o.status()
	st.Started = &at
	o.rep.vertexes(st)
}

// end tells how the vertex ended: an empty text is success, and then of names the result.
func (o *voice) end(text string, cached bool, of digest.Digest) (started, completed time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.tail()
	completed = time.Now()
	if !o.open {
		o.started = completed
	}
	o.open = false
	started = o.started
	st := o.status()
	st.Started, st.Completed, st.Cached, st.Error, st.Result, st.Process = &started, &completed, cached, text, of, o.process
	o.rep.vertexes(st)
	return started, completed
}

// drop ends a vertex that is under way as canceled; one that never began is not told of.
func (o *voice) drop() {
	o.mu.Lock()
	open := o.open
	o.mu.Unlock()
	if open {
		o.end("context canceled", false, "")
	}
}

// tail tells what the bound on output held back, with o.mu held.
func (o *voice) tail() {
	for stream, data := range o.clips.rest() {
		o.rep.log(o.dgst, stream, data, time.Now())
	}
}

// Running implements build.Runs.
func (o *voice) Running(id string) {
	o.begin(time.Now())
	o.mu.Lock()
	defer o.mu.Unlock()
	o.process = id
	st, started := o.status(), o.started
	st.Started, st.Process = &started, id
	o.rep.vertexes(st)
}

// Log implements build.Progress: for work that is done for this job alone.
func (o *voice) Log(stream int, data []byte) {
	now := time.Now()
	o.begin(now)
	o.mu.Lock()
	defer o.mu.Unlock()
	if data = o.clips.take(stream, data); len(data) > 0 {
		o.rep.log(o.dgst, stream, data, now)
	}
}

// log tells output that was bounded already.
func (o *voice) log(stream int, data []byte, at time.Time) { o.rep.log(o.dgst, stream, data, at) }

// Status implements build.Progress.
func (o *voice) Status(id string, current, total int64, done bool) {
	now := time.Now()
	o.begin(now)
	o.mu.Lock()
	defer o.mu.Unlock()
	started, ok := o.parts[id]
	if !ok {
		if o.parts == nil {
			o.parts = map[string]time.Time{}
		}
		started = now
		o.parts[id] = now
	}
	o.part(partOf(id, current, total, done, started, now))
}

// part tells of a part.
func (o *voice) part(p build.PartStatus) {
	p.Vertex = o.dgst
	o.rep.part(p)
}

// Warn implements build.Progress.
func (o *voice) Warn(w build.Warning) {
	w.Vertex = o.dgst
	o.rep.warning(w)
}

func partOf(id string, current, total int64, done bool, started, now time.Time) build.PartStatus {
	p := build.PartStatus{ID: id, Current: current, Total: total, Timestamp: now, Started: &started}
	if done {
		p.Completed = &now
	}
	return p
}
