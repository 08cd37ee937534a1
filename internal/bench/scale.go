package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// ScaleFigure is what one engine needs while a number of other containers run: medians and minima of interleaved rounds.
type ScaleFigure struct {
	Running              int
	Run, PS, PSAll       Spread
	PerContainer, Engine int64 // PSS bytes
}

// Spread is the least and the median of some times.
type Spread struct{ Min, Median time.Duration }

func (s Spread) String() string { return ms(s.Median) + " (" + ms(s.Min) + ")" }

const scaleRounds = 15

// Scale measures start time, ps time (the five newest, and all) and the engine's memory with growing numbers of idle containers: only the whole list may grow with the number.
// The rows take turns, as in [Run]; the memory is looked at before them, some seconds after the last start, as an idle engine has it.
func Scale(ctx context.Context, e *Engine, counts []int, progress io.Writer) (figures []ScaleFigure, err error) {
	if err := e.Start(ctx); err != nil {
		return nil, errors.Join(err, e.Stop())
	}
	defer func() { err = errors.Join(err, e.Stop()) }()
	empty, err := e.pss()
	if err != nil {
		return nil, err
	}
	running := 0
	defer func() { err = errors.Join(err, e.removeMany(running)) }()
	for _, n := range counts {
		fmt.Fprintf(progress, "starting containers up to %d\n", n)
		for ; running < n; running++ {
			if err := e.run(nil, io.Discard, "run", "-d", "--name", manyName(running), benchImage, "sleep", "100000"); err != nil {
				return figures, err
			}
		}
		time.Sleep(settle)
		f := ScaleFigure{Running: n}
		now, err := e.pss()
		if err != nil {
			return figures, err
		}
		if n > 0 {
			f.PerContainer = (now.helpers - empty.helpers) / int64(n)
		}
		f.Engine = now.engine
		err = inTurns([]turn{
			{&f.Run, func() error { return e.run(nil, nil, "run", "--rm", benchImage, "true") }},
			{&f.PS, func() error { return e.run(nil, io.Discard, "ps", "-n", "5") }},
			{&f.PSAll, func() error { return e.run(nil, io.Discard, "ps") }},
		})
		if err != nil {
			return figures, err
		}
		figures = append(figures, f)
	}
	return figures, nil
}

// settle is how long the engine is left alone before its memory is read: it gives back what a burst needed.
const settle = 12 * time.Second

// turn is a row and what is timed for it.
type turn struct {
	into  *Spread
	timed func() error
}

// inTurns times every row once per round, after one round that does not count.
func inTurns(turns []turn) error {
	times := make([][]time.Duration, len(turns))
	for round := range scaleRounds + 1 {
		for i, t := range turns {
			start := time.Now()
			if err := t.timed(); err != nil {
				return err
			}
			if round > 0 {
				times[i] = append(times[i], time.Since(start))
			}
		}
	}
	for i, t := range turns {
		slices.Sort(times[i])
		*t.into = Spread{times[i][0], times[i][len(times[i])/2]}
	}
	return nil
}

// PrintScale writes the table for people.
func PrintScale(w io.Writer, label string, figures []ScaleFigure) error {
	tw := tabwriter.NewWriter(w, 2, 4, 2, ' ', 0)
	fmt.Fprintln(tw, strings.ToUpper(label)+" WITH RUNNING\tRUN --RM: MEDIAN (MIN)\tPS -N 5\tPS\tMONITOR, EACH\tENGINE")
	for _, f := range figures {
		fmt.Fprintf(tw, "%d\t%s\t%s\t%s\t%.2f MB\t%.1f MB\n", f.Running, f.Run, f.PS, f.PSAll, float64(f.PerContainer)/1e6, float64(f.Engine)/1e6)
	}
	return tw.Flush()
}
