package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"
	"github.com/spf13/pflag"

	"corten.dev/corten/internal/cli/engineapi"
	"corten.dev/corten/internal/cli/show"
)

type statsOptions struct {
	all, noStream, noTrunc bool
	format                 string
}

func newStats() *verb {
	var o statsOptions
	return &verb{
		use: "[OPTIONS] [CONTAINER...]", max: -1, short: "Show what containers use, live", names: runningContainers,
		long: "Shows processor, memory, network, disk and processes of the running containers, or of those named, every half second.", example: "corten stats\ncorten stats --no-stream --format '{{.Name}} {{.MemUsage}}'",
		flags: func(f *pflag.FlagSet) {
			f.BoolVarP(&o.all, "all", "a", false, "show those that do not run, too")
			f.BoolVar(&o.noStream, "no-stream", false, "print once and end")
			f.BoolVar(&o.noTrunc, "no-trunc", false, "do not shorten")
			f.StringVar(&o.format, "format", "", formatUsage)
		},
		run: func(ctx context.Context, a *app, args []string) error { return o.run(ctx, a, args) },
	}
}

// statRow is a container's line; it is replaced as a whole.
type statRow struct {
	container string
	s         *container.StatsResponse // nil: nothing known yet
	full      bool
}

func (o *statsOptions) run(ctx context.Context, a *app, names []string) error {
	api, err := a.engine()
	if err != nil {
		return err
	}
	if o.format == "" {
		o.format = a.cfg.StatsFormat
	}
	dynamic := len(names) == 0
	if dynamic {
		if names, err = statNames(ctx, api, o.all); err != nil {
			return err
		}
	}
	if o.noStream {
		return o.once(ctx, a, api, names)
	}
	return o.live(ctx, a, api, names, dynamic)
}

func statNames(ctx context.Context, api *engineapi.Client, all bool) ([]string, error) {
	var list []container.Summary
	if err := api.Get(ctx, "/containers/json", query("all", flag1(all), "brief", "1"), &list); err != nil {
		return nil, err
	}
	var names []string
	for _, c := range list {
		names = append(names, show.ShortID(c.ID))
	}
	return names, nil
}

func (o *statsOptions) once(ctx context.Context, a *app, api *engineapi.Client, names []string) error {
	rows := make([]*statRow, len(names))
	errs := make([]error, len(names))
	var wg sync.WaitGroup
	for i, name := range names {
		wg.Go(func() {
			var s container.StatsResponse
			if errs[i] = api.Get(ctx, "/containers/"+esc(name)+"/stats", query("stream", "0"), &s); errs[i] == nil {
				rows[i] = &statRow{container: name, s: &s, full: o.noTrunc}
			}
		})
	}
	wg.Wait()
	var good []any
	for _, r := range rows {
		if r != nil {
			good = append(good, r)
		}
	}
	if err := errors.Join(errs...); err != nil && len(good) == 0 {
		return err
	}
	if err := o.list().Print(a.Out, good); err != nil {
		return err
	}
	return errors.Join(errs...)
}

func (o *statsOptions) list() show.List {
	return show.List{Format: o.format, Headers: show.Headers{"Container": "CONTAINER", "ID": "CONTAINER ID", "Name": "NAME", "CPUPerc": "CPU %",
		"MemUsage": "MEM USAGE / LIMIT", "MemPerc": "MEM %", "NetIO": "NET I/O", "BlockIO": "BLOCK I/O", "PIDs": "PIDS"},
		Default: "table {{.ID}}\t{{.Name}}\t{{.CPUPerc}}\t{{.MemUsage}}\t{{.MemPerc}}\t{{.NetIO}}\t{{.BlockIO}}\t{{.PIDs}}"}
}

// board collects the newest numbers of all containers.
type board struct {
	mu    sync.Mutex // guards the fields below
	rows  map[string]*statRow
	order []string
	fault error
}

func (b *board) set(name string, r *statRow) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, ok := b.rows[name]; !ok {
		b.order = append(b.order, name)
	}
	b.rows[name] = r
}

func (b *board) drop(name string, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.rows, name)
	for i, n := range b.order {
		if n == name {
			b.order = append(b.order[:i:i], b.order[i+1:]...)
			break
		}
	}
	if err != nil && b.fault == nil {
		b.fault = err
	}
}

func (b *board) has(name string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	_, ok := b.rows[name]
	return ok
}

func (b *board) snapshot() ([]any, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := make([]any, 0, len(b.order))
	for _, n := range b.order {
		out = append(out, b.rows[n])
	}
	return out, b.fault
}

func (o *statsOptions) live(ctx context.Context, a *app, api *engineapi.Client, names []string, dynamic bool) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	b := &board{rows: map[string]*statRow{}}
	watch := func(name string) {
		b.set(name, &statRow{container: name, full: o.noTrunc})
		go o.follow(ctx, api, b, name, dynamic)
	}
	for _, n := range names {
		watch(n)
	}
	_, screen := terminalFd(a.Out)
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for n := 0; ; n++ {
		rows, fault := b.snapshot()
		if err := o.draw(a.Out, rows, screen); err != nil {
			return err
		}
		if fault != nil {
			return fault
		}
		if !dynamic && len(rows) == 0 {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		if dynamic && n%4 == 3 {
			now, err := statNames(ctx, api, o.all)
			if err != nil {
				return err
			}
			for _, name := range now {
				if !b.has(name) {
					watch(name)
				}
			}
		}
	}
}

// draw prints all rows; a screen is overwritten in place.
func (o *statsOptions) draw(w io.Writer, rows []any, screen bool) error {
	var buf bytes.Buffer
	if err := o.list().Print(&buf, rows); err != nil {
		return err
	}
	out := buf.Bytes()
	if screen {
		out = append([]byte("\x1b[H"), bytes.ReplaceAll(out, []byte("\n"), []byte("\x1b[K\n"))...)
		out = append(out, "\x1b[J"...)
	}
	_, err := w.Write(out)
	return err
}

// follow keeps a container's row fresh until its stream ends.
func (o *statsOptions) follow(ctx context.Context, api *engineapi.Client, b *board, name string, dynamic bool) {
	resp, err := api.Do(ctx, engineapi.Request{Method: "GET", Path: "/containers/" + esc(name) + "/stats", Query: query("stream", "1")})
	if err != nil {
		if dynamic { // it went between the list and the question
			err = nil
		}
		b.drop(name, err)
		return
	}
	defer resp.Body.Close()
	dec := json.NewDecoder(resp.Body)
	for {
		var s container.StatsResponse
		if err := dec.Decode(&s); err == io.EOF {
			b.drop(name, nil)
			return
		} else if err != nil { // the engine went away: to have seen the last of the containers is no success then
			b.drop(name, err)
			return
		}
		b.set(name, &statRow{container: name, s: &s, full: o.noTrunc})
	}
}

func (r *statRow) MarshalJSON() ([]byte, error) { return show.MarshalRow(r) }

// Container is the name that was asked for.
func (r *statRow) Container() string { return r.container }

func (r *statRow) ID() string {
	if r.s == nil || r.s.ID == "" {
		return "--"
	}
	if r.full {
		return r.s.ID
	}
	return show.ShortID(r.s.ID)
}

func (r *statRow) Name() string {
	if r.s == nil || len(r.s.Name) < 2 {
		return "--"
	}
	if r.s.Name[0] == '/' {
		return r.s.Name[1:]
	}
	return r.s.Name
}

// known tells whether anything is known of the container yet.
func (r *statRow) known() bool { return r.s != nil }

func (r *statRow) CPUPerc() string {
	if !r.known() {
		return "--"
	}
	cur, pre := r.s.CPUStats, r.s.PreCPUStats
	used := float64(cur.CPUUsage.TotalUsage) - float64(pre.CPUUsage.TotalUsage)
	total := float64(cur.SystemUsage) - float64(pre.SystemUsage)
	cpus := float64(cur.OnlineCPUs)
	if cpus == 0 {
		cpus = float64(len(cur.CPUUsage.PercpuUsage))
	}
	if used <= 0 || total <= 0 {
		return "0.00%"
	}
	return fmt.Sprintf("%.2f%%", used/total*cpus*100)
}

// memory is what the container cannot give back: without the inactive part of the page cache.
func (r *statRow) memory() float64 {
	m := r.s.MemoryStats
	for _, key := range []string{"total_inactive_file", "inactive_file"} { // cgroup v1, v2
		if v, ok := m.Stats[key]; ok {
			if v < m.Usage {
				return float64(m.Usage - v)
			}
			if key == "total_inactive_file" {
				break
			}
		}
	}
	return float64(m.Usage)
}

func (r *statRow) MemUsage() string {
	if !r.known() {
		return "-- / --"
	}
	return units.BytesSize(r.memory()) + " / " + units.BytesSize(float64(r.s.MemoryStats.Limit))
}

func (r *statRow) MemPerc() string {
	if !r.known() {
		return "--"
	}
	if r.s.MemoryStats.Limit == 0 {
		return "0.00%"
	}
	return fmt.Sprintf("%.2f%%", r.memory()/float64(r.s.MemoryStats.Limit)*100)
}

func (r *statRow) NetIO() string {
	if !r.known() {
		return "--"
	}
	var rx, tx float64
	for _, n := range r.s.Networks {
		rx += float64(n.RxBytes)
		tx += float64(n.TxBytes)
	}
	return units.HumanSizeWithPrecision(rx, 3) + " / " + units.HumanSizeWithPrecision(tx, 3)
}

func (r *statRow) BlockIO() string {
	if !r.known() {
		return "--"
	}
	var read, write uint64
	for _, e := range r.s.BlkioStats.IoServiceBytesRecursive {
		if e.Op == "" {
			continue
		}
		switch e.Op[0] {
		case 'r', 'R':
			read += e.Value
		case 'w', 'W':
			write += e.Value
		}
	}
	return units.HumanSizeWithPrecision(float64(read), 3) + " / " + units.HumanSizeWithPrecision(float64(write), 3)
}

func (r *statRow) PIDs() string {
	if !r.known() {
		return "--"
	}
	return fmt.Sprint(r.s.PidsStats.Current)
}
