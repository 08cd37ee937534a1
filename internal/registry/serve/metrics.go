package serve

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"corten.dev/corten/internal/registry/server"
)

// stockAge is how old the count of blobs and uploads may be: counting walks the whole storage. stockWait is how long an answer waits for a new count.
const (
	stockAge  = 5 * time.Minute
	stockWait = 2 * time.Second
)

// metrics counts what the registry does, and writes it as OpenMetrics text. It is the registry's observer, and writes the access log.
type metrics struct {
	driver  server.Driver
	access  bool
	log     *slog.Logger
	started time.Time
	limited func() int64
	walk    func(do func(context.Context)) // beside the request

	mu       sync.Mutex // guards what follows
	requests map[requestKey]int64
	spans    map[string]*histogram
	in, out  int64
	gone     map[string]int64
	freed    int64
	runs     int64
	last     server.Report
	lastAt   time.Time
	stock    stock
	counting bool
}

type requestKey struct {
	route, method string
	status        int
}

// stock is how much is kept, as of a moment ago.
type stock struct {
	at                              time.Time
	blobs, bytes, uploads, unfinish int64
}

var bounds = [...]float64{0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300}

type histogram struct {
	buckets [len(bounds)]int64
	count   int64
	sum     float64
}

func (h *histogram) add(seconds float64) {
	h.count++
	h.sum += seconds
	for i, b := range bounds {
		if seconds <= b {
			h.buckets[i]++
		}
	}
}

func newMetrics(driver server.Driver, access bool, log *slog.Logger) *metrics {
	return &metrics{
		driver: driver, access: access, log: log, started: time.Now(), limited: func() int64 { return 0 },
		requests: map[requestKey]int64{}, spans: map[string]*histogram{}, gone: map[string]int64{},
	}
}

// knownMethods keep a client from making series of its own.
var knownMethods = []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"}

// Finished takes note of an answered request.
func (m *metrics) Finished(info server.RequestInfo) {
	method := info.Method
	if !slices.Contains(knownMethods, method) {
		method = "other"
	}
	m.mu.Lock()
	m.requests[requestKey{info.Route, method, info.Status}]++
	h := m.spans[info.Route]
	if h == nil {
		h = &histogram{}
		m.spans[info.Route] = h
	}
	h.add(info.Duration.Seconds())
	m.in += info.In
	m.out += info.Out
	m.mu.Unlock()
	if m.access {
		m.log.Info("request", "method", info.Method, "route", info.Route, "repository", info.Repository, "user", info.User, "status", info.Status,
			"in", info.In, "out", info.Out, "took", info.Duration)
	}
}

// collected takes note of a collection.
func (m *metrics) collected(r server.Report) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for kind, n := range map[string]int{"upload": r.Uploads, "tag": r.Tags, "manifest": r.Manifests, "link": r.Links, "blob": r.Blobs} {
		m.gone[kind] += int64(n)
	}
	m.freed += r.Bytes
	m.runs++
	m.last, m.lastAt = r, time.Now()
}

// fresh has the storage counted if the last count is old, one walk at a time. It waits a moment only: a walk through much storage takes longer than who asks is willing to wait,
// who then gets the last figures. The walk ends with the registry.
func (m *metrics) fresh(ctx context.Context) {
	m.mu.Lock()
	if m.counting || time.Since(m.stock.at) < stockAge {
		m.mu.Unlock()
		return
	}
	m.counting = true
	m.mu.Unlock()
	done := make(chan struct{})
	m.walk(func(ctx context.Context) {
		defer close(done)
		m.count(ctx)
	})
	wait := time.NewTimer(stockWait)
	defer wait.Stop()
	select {
	case <-done:
	case <-wait.C:
	case <-ctx.Done():
	}
}

func (m *metrics) count(ctx context.Context) {
	s := stock{}
	err := m.driver.WalkBlobs(ctx, func(b server.BlobInfo) error { s.blobs++; s.bytes += b.Size; return ctx.Err() })
	if err == nil {
		err = m.driver.WalkUploads(ctx, func(u server.UploadInfo) error { s.uploads++; s.unfinish += u.Size; return ctx.Err() })
	}
	s.at = time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.counting = false
	if err != nil {
		if ctx.Err() == nil {
			m.log.Warn("metrics: what is kept could not be counted", "err", err)
		}
		return
	}
	m.stock = s
}

// ServeHTTP writes all figures.
func (m *metrics) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	m.fresh(req.Context())
	w.Header().Set("Content-Type", "application/openmetrics-text; version=1.0.0; charset=utf-8")
	var b strings.Builder
	m.write(&b)
	_, _ = io.WriteString(w, b.String()) // who has gone misses it
}

func (m *metrics) write(w io.Writer) {
	m.mu.Lock()
	defer m.mu.Unlock()
	family := func(name, kind, unit, help string) {
		fmt.Fprintf(w, "# TYPE %s %s\n", name, kind)
		if unit != "" {
			fmt.Fprintf(w, "# UNIT %s %s\n", name, unit)
		}
		fmt.Fprintf(w, "# HELP %s %s\n", name, help)
	}
	family("corten_registry_requests", "counter", "", "Answered requests of the distribution API.")
	for _, k := range slices.SortedFunc(maps.Keys(m.requests), func(a, b requestKey) int {
		return strings.Compare(fmt.Sprint(a), fmt.Sprint(b))
	}) {
		fmt.Fprintf(w, "corten_registry_requests_total{route=%q,method=%q,code=\"%d\"} %d\n", k.route, k.method, k.status, m.requests[k])
	}
	family("corten_registry_request_duration_seconds", "histogram", "seconds", "How long requests took, bodies included.")
	for _, route := range slices.Sorted(maps.Keys(m.spans)) {
		h := m.spans[route]
		for i, bound := range bounds {
			fmt.Fprintf(w, "corten_registry_request_duration_seconds_bucket{route=%q,le=%q} %d\n", route, number(bound), h.buckets[i])
		}
		fmt.Fprintf(w, "corten_registry_request_duration_seconds_bucket{route=%q,le=\"+Inf\"} %d\n", route, h.count)
		fmt.Fprintf(w, "corten_registry_request_duration_seconds_count{route=%q} %d\n", route, h.count)
		fmt.Fprintf(w, "corten_registry_request_duration_seconds_sum{route=%q} %s\n", route, number(h.sum))
	}
	family("corten_registry_transferred_bytes", "counter", "bytes", "Bytes of bodies.")
	fmt.Fprintf(w, "corten_registry_transferred_bytes_total{direction=\"in\"} %d\ncorten_registry_transferred_bytes_total{direction=\"out\"} %d\n", m.in, m.out)
	family("corten_registry_limited_requests", "counter", "", "Requests refused because their sender was too fast.")
	fmt.Fprintf(w, "corten_registry_limited_requests_total %d\n", m.limited())
	m.writeStock(w, family)
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	family("corten_registry_memory_bytes", "gauge", "bytes", "Memory taken from the system.")
	fmt.Fprintf(w, "corten_registry_memory_bytes %d\n", mem.Sys)
	family("corten_registry_goroutines", "gauge", "", "Goroutines.")
	fmt.Fprintf(w, "corten_registry_goroutines %d\n", runtime.NumGoroutine())
	family("corten_registry_start_time_seconds", "gauge", "seconds", "When the registry was started.")
	fmt.Fprintf(w, "corten_registry_start_time_seconds %s\n# EOF\n", stamp(m.started))
}

func (m *metrics) writeStock(w io.Writer, family func(name, kind, unit, help string)) {
	if !m.stock.at.IsZero() {
		for _, g := range []struct {
			name, unit, help string
			value            int64
		}{
			{"corten_registry_blobs", "", "Blobs that are kept, as of a few minutes ago.", m.stock.blobs},
			{"corten_registry_stored_bytes", "bytes", "Bytes of the blobs that are kept.", m.stock.bytes},
			{"corten_registry_open_uploads", "", "Uploads that are neither finished nor given up.", m.stock.uploads},
			{"corten_registry_upload_bytes", "bytes", "Bytes of these uploads.", m.stock.unfinish},
		} {
			family(g.name, "gauge", g.unit, g.help)
			fmt.Fprintf(w, "%s %d\n", g.name, g.value)
		}
	}
	family("corten_registry_collected", "counter", "", "What collections removed.")
	for _, kind := range slices.Sorted(maps.Keys(m.gone)) {
		fmt.Fprintf(w, "corten_registry_collected_total{kind=%q} %d\n", kind, m.gone[kind])
	}
	family("corten_registry_collected_bytes", "counter", "bytes", "Bytes that collections freed.")
	fmt.Fprintf(w, "corten_registry_collected_bytes_total %d\n", m.freed)
	family("corten_registry_collections", "counter", "", "Collections that came to their end in this process.")
	fmt.Fprintf(w, "corten_registry_collections_total %d\n", m.runs)
	if !m.lastAt.IsZero() {
		family("corten_registry_last_collection_seconds", "gauge", "seconds", "When the last one ended.")
		fmt.Fprintf(w, "corten_registry_last_collection_seconds %s\n", stamp(m.lastAt))
		family("corten_registry_last_collection_duration_seconds", "gauge", "seconds", "How long it took.")
		fmt.Fprintf(w, "corten_registry_last_collection_duration_seconds %s\n", number(m.last.Duration.Seconds()))
	}
}

// number writes a float as OpenMetrics wants its canonical numbers ("1.0").
func number(f float64) string {
	s := strconv.FormatFloat(f, 'g', -1, 64)
	if !strings.ContainsAny(s, ".e") {
		s += ".0"
	}
	return s
}

func stamp(t time.Time) string { return strconv.FormatFloat(float64(t.UnixMilli())/1000, 'f', 3, 64) }
