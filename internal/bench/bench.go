// Package bench measures Corten beside the engines that are installed on the machine: whole commands, as a shell sees them.
//
// It owns the list of rows (those of DESIGN's budgets), the private engines it starts, and the report. It promises that all contestants of a row are measured interleaved in one
// run, that figures are medians over stated counts, and that everything it started is gone afterwards. It judges nothing: noisy machines make no failing tests.
package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"text/tabwriter"
	"time"
)

// Contestant is an engine or runtime that can be measured. A row that it cannot do returns [ErrSkip].
type Contestant interface {
	Name() string
	// Start makes it ready (engine running, image there); Stop takes all of it away.
	Start(ctx context.Context) error
	Stop() error
	// Prepare gets ready for a row and returns the function to time, and one to clean up after each timing (may be nil).
	Prepare(ctx context.Context, row string) (timed func() error, after func() error, done func() error, err error)
	// Memory returns the PSS bytes of everything but the containers' own processes, per idle container and of the engine, with n containers.
	Memory(ctx context.Context, n int) (perContainer, engine int64, err error)
}

// Row is one line of the report.
type Row struct {
	Key    string
	What   string
	Budget time.Duration
	Rounds int
}

// Rows are the time budgets of the start path.
var Rows = []Row{
	{"run-bridge", "run --rm busybox true, default network", 12 * time.Millisecond, 31},
	{"run-none", "run --rm --network none busybox true", 9 * time.Millisecond, 31},
	{"exec", "exec c true", 6 * time.Millisecond, 31},
	{"ps", "ps", 5 * time.Millisecond, 31},
	{"version", "version", 5 * time.Millisecond, 31},
	{"serial20", "20 x run -d, one after the other", 300 * time.Millisecond, 5},
	{"parallel20", "20 x run -d, 8 at a time", 200 * time.Millisecond, 5},
	{"output-run", "80 MB in 10^6 lines through run", 400 * time.Millisecond, 5},
	{"output-logs", "logs of those 80 MB", 200 * time.Millisecond, 5},
}

// Figure is what one contestant needed for one row.
type Figure struct {
	Row, Contestant  string
	Median, Min, Max time.Duration
	Count            int
	Error            string `json:",omitempty"`
}

// MemoryFigure is PSS, in bytes.
type MemoryFigure struct {
	Contestant           string
	PerContainer, Engine int64
	Containers           int
	Error                string `json:",omitempty"`
}

// Report is all of a run.
type Report struct {
	Figures []Figure
	Memory  []MemoryFigure
	Skipped map[string]string // contestant: why it was not measured

	rows []Row
}

// Options choose what to measure.
type Options struct {
	Table      []Row    // what there is to measure; empty means [Rows]
	Rows       []string // keys of those wanted; empty means all
	Rounds     int      // 0: each row's own
	Containers int      // for the memory row
	Progress   io.Writer
}

// Run measures all contestants.
func Run(ctx context.Context, all []Contestant, opts Options) Report {
	rep := Report{Skipped: map[string]string{}, rows: opts.Table}
	if rep.rows == nil {
		rep.rows = Rows
	}
	var ready []Contestant
	for _, c := range all {
		fmt.Fprintf(opts.Progress, "starting %s\n", c.Name())
		if err := c.Start(ctx); err != nil {
			rep.Skipped[c.Name()] = err.Error()
			if serr := c.Stop(); serr != nil {
				fmt.Fprintf(opts.Progress, "stopping %s: %v\n", c.Name(), serr)
			}
			continue
		}
		ready = append(ready, c)
	}
	for _, row := range rep.rows {
		if len(opts.Rows) > 0 && !slices.Contains(opts.Rows, row.Key) {
			continue
		}
		if opts.Rounds > 0 {
			row.Rounds = opts.Rounds
		}
		fmt.Fprintf(opts.Progress, "measuring %s\n", row.What)
		rep.Figures = append(rep.Figures, runRow(ctx, row, ready)...)
	}
	if len(opts.Rows) == 0 && len(opts.Table) == 0 || slices.Contains(opts.Rows, "memory") {
		for _, c := range ready {
			fmt.Fprintf(opts.Progress, "measuring memory of %s\n", c.Name())
			per, engine, err := c.Memory(ctx, opts.Containers)
			rep.Memory = append(rep.Memory, MemoryFigure{c.Name(), per, engine, opts.Containers, text(err)})
		}
	}
	for _, c := range ready {
		if err := c.Stop(); err != nil {
			fmt.Fprintf(opts.Progress, "stopping %s: %v\n", c.Name(), err)
		}
	}
	return rep
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// patience is how long one contestant may take for a row, all rounds together. Who is slower gets fewer rounds, at least one.
const patience = 45 * time.Second

// runRow times every contestant once per round, in turn, after one warm-up each.
func runRow(ctx context.Context, row Row, all []Contestant) []Figure {
	type lane struct {
		fig          Figure
		timed, after func() error
		done         func() error
		times        []time.Duration
		spent        time.Duration
	}
	lanes := make([]*lane, len(all))
	for i, c := range all {
		l := &lane{fig: Figure{Row: row.Key, Contestant: c.Name()}}
		lanes[i] = l
		err := ctx.Err() // a person who interrupts gets what is measured so far, and everything taken away
		if err != nil {
			l.fig.Error = err.Error()
			continue
		}
		if l.timed, l.after, l.done, err = c.Prepare(ctx, row.Key); err != nil {
			l.fig.Error = err.Error()
		}
	}
	for round := -1; round < row.Rounds; round++ {
		for _, l := range lanes {
			if l.fig.Error != "" || ctx.Err() != nil || len(l.times) > 0 && l.spent > patience {
				continue
			}
			start := time.Now()
			err := l.timed()
			took := time.Since(start)
			l.spent += took
			if err == nil && l.after != nil {
				err = l.after()
			}
			if err != nil {
				l.fig.Error = err.Error()
			} else if round >= 0 {
				l.times = append(l.times, took)
			}
		}
	}
	figures := make([]Figure, 0, len(lanes))
	for _, l := range lanes {
		if l.done != nil {
			if err := l.done(); err != nil && l.fig.Error == "" {
				l.fig.Error = err.Error()
			}
		}
		if n := len(l.times); n > 0 {
			slices.Sort(l.times)
			l.fig.Count, l.fig.Min, l.fig.Median, l.fig.Max = n, l.times[0], l.times[n/2], l.times[n-1]
		} else if l.fig.Error == "" {
			l.fig.Error = "interrupted"
		}
		figures = append(figures, l.fig)
	}
	return figures
}

// Print writes the table for people.
func (r Report) Print(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 2, 4, 2, ' ', 0)
	fmt.Fprintln(tw, "WHAT\tCONTESTANT\tMEDIAN\tMIN\tMAX\tRUNS\tBUDGET")
	for _, row := range r.rows {
		for _, f := range r.Figures {
			if f.Row != row.Key || f.Error == ErrSkip.Error() {
				continue
			}
			if f.Error != "" {
				fmt.Fprintf(tw, "%s\t%s\t-\t-\t-\t-\t%s\n", row.What, f.Contestant, f.Error)
				continue
			}
			fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%d\t%s\n", row.What, f.Contestant, ms(f.Median), ms(f.Min), ms(f.Max), f.Count, row.budget())
		}
	}
	for _, m := range r.Memory {
		if m.Error == ErrSkip.Error() {
			continue
		}
		if m.Error != "" {
			fmt.Fprintf(tw, "memory\t%s\t-\t\t\t\t%s\n", m.Contestant, m.Error)
			continue
		}
		fmt.Fprintf(tw, "memory per idle container (PSS)\t%s\t%.2f MB\t\t\t%d\t1.5 MB\n", m.Contestant, float64(m.PerContainer)/1e6, m.Containers)
		fmt.Fprintf(tw, "memory of the engine (PSS)\t%s\t%.1f MB\t\t\t%d\t40 MB\n", m.Contestant, float64(m.Engine)/1e6, m.Containers)
	}
	names := make([]string, 0, len(r.Skipped))
	for name := range r.Skipped {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		fmt.Fprintf(tw, "not measured\t%s\t%s\n", name, r.Skipped[name])
	}
	return tw.Flush()
}

func (r Row) budget() string {
	if r.Budget == 0 {
		return ""
	}
	return ms(r.Budget)
}

func ms(d time.Duration) string { return fmt.Sprintf("%.1f ms", float64(d)/1e6) }

// Save writes the report as JSON.
func (r Report) Save(path string) error {
	raw, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(raw, '\n'), 0o644)
}
