package solve

import (
	"log/slog"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/task"
)

// Progress is told in batches: not sooner than beat after the last one, unless so many bytes of output wait.
const (
	beat      = 50 * time.Millisecond
	firstBeat = 2 * time.Millisecond
	batch     = 64 << 10
	// piece is how long a log entry may become by output that follows at once.
	piece = 16 << 10
)

// reporter gathers what happens in a job and tells it in batches, from one goroutine. A nil reporter tells nobody.
type reporter struct {
	tell func(build.Status)
	bugs *slog.Logger
	wake chan struct{} // something waits to be told
	full chan struct{} // so much waits that it is told now
	asks chan chan struct{}
	quit chan struct{}
	done chan struct{}

	mu    sync.Mutex // guards what follows
	next  build.Status
	parts map[partKey]int // where in next.Parts
	bytes int
}

type partKey struct {
	vertex digest.Digest
	id     string
}

func newReporter(tell func(build.Status), log *slog.Logger) *reporter {
	if tell == nil {
		return nil
	}
	r := &reporter{tell: tell, bugs: log, wake: make(chan struct{}, 1), full: make(chan struct{}, 1), asks: make(chan chan struct{}), quit: make(chan struct{}), done: make(chan struct{})}
	go r.run()
	return r
}

func (r *reporter) run() {
	defer close(r.done)
	var last time.Time
	for {
		select {
		case <-r.wake:
			wait := max(firstBeat, beat-time.Since(last))
			select {
			case <-time.After(wait):
			case <-r.full:
			case ack := <-r.asks:
				r.send()
				close(ack)
			case <-r.quit:
			}
			r.send()
			last = time.Now()
		case ack := <-r.asks:
			r.send()
			close(ack)
		case <-r.quit:
			r.send()
			return
		}
	}
}

// send tells what waits. A bug in who is told must not end the engine: this goroutine is nobody else's.
func (r *reporter) send() {
	defer task.Contain(r.bugs, "tell the status of a build", nil)
	r.mu.Lock()
	st := r.next
	r.next, r.bytes = build.Status{}, 0
	clear(r.parts)
	r.mu.Unlock()
	if len(st.Vertexes)+len(st.Parts)+len(st.Logs)+len(st.Warnings) > 0 {
		r.tell(st)
	}
}

// flush returns when everything until now was told.
func (r *reporter) flush() {
	if r == nil {
		return
	}
	ack := make(chan struct{})
	select {
	case r.asks <- ack:
		<-ack
	case <-r.done:
	}
}

// close tells the rest, and ends. What is added later is told to nobody.
func (r *reporter) close() {
	if r == nil {
		return
	}
	close(r.quit)
	<-r.done
}

// add changes what waits to be told.
func (r *reporter) add(fn func(*build.Status)) {
	if r == nil {
		return
	}
	r.mu.Lock()
	fn(&r.next)
	full := r.bytes >= batch
	r.mu.Unlock()
	poke(r.wake)
	if full {
		poke(r.full)
	}
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func (r *reporter) vertexes(all ...build.VertexStatus) {
	r.add(func(st *build.Status) { st.Vertexes = append(st.Vertexes, all...) })
}

func (r *reporter) warning(w build.Warning) {
	r.add(func(st *build.Status) { st.Warnings = append(st.Warnings, w) })
}

// log adds output; data is copied.
func (r *reporter) log(dgst digest.Digest, stream int, data []byte, at time.Time) {
	r.add(func(st *build.Status) {
		r.bytes += len(data)
		if n := len(st.Logs); n > 0 {
			if last := &st.Logs[n-1]; last.Vertex == dgst && last.Stream == stream && len(last.Data)+len(data) <= piece {
				last.Data = append(last.Data, data...)
				return
			}
		}
		st.Logs = append(st.Logs, build.LogStatus{Vertex: dgst, Stream: stream, Data: append([]byte(nil), data...), Timestamp: at})
	})
}

// part adds the state of a part; of what waits only the newest is told.
func (r *reporter) part(p build.PartStatus) {
	r.add(func(st *build.Status) {
		key := partKey{p.Vertex, p.ID}
		if i, ok := r.parts[key]; ok {
			st.Parts[i] = p
			return
		}
		if r.parts == nil {
			r.parts = map[partKey]int{}
		}
		r.parts[key] = len(st.Parts)
		st.Parts = append(st.Parts, p)
	})
}
