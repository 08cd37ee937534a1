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

// ScaleFigure is what one engine needs while a number of other containers run.
type ScaleFigure struct {
	Running              int
	Run, PS              time.Duration // medians
	PerContainer, Engine int64         // PSS bytes
}

const scaleRounds = 15

// Scale measures start time, ps time and memory with growing numbers of idle containers: none of them may grow with the number.
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
		time.Sleep(2 * time.Second)
		f := ScaleFigure{Running: n}
		if f.Run, err = median(func() error { return e.run(nil, nil, "run", "--rm", benchImage, "true") }); err != nil {
			return figures, err
		}
		if f.PS, err = median(func() error { return e.run(nil, io.Discard, "ps", "-n", "5") }); err != nil {
			return figures, err
		}
		now, err := e.pss()
		if err != nil {
			return figures, err
		}
		if n > 0 {
			f.PerContainer = (now.helpers - empty.helpers) / int64(n)
		}
		f.Engine = now.engine
		figures = append(figures, f)
	}
	return figures, nil
}

func median(timed func() error) (time.Duration, error) {
	var times []time.Duration
	for range scaleRounds {
		start := time.Now()
		if err := timed(); err != nil {
			return 0, err
		}
		times = append(times, time.Since(start))
	}
	slices.Sort(times)
	return times[len(times)/2], nil
}

// PrintScale writes the table for people.
func PrintScale(w io.Writer, label string, figures []ScaleFigure) error {
	tw := tabwriter.NewWriter(w, 2, 4, 2, ' ', 0)
	fmt.Fprintln(tw, strings.ToUpper(label)+" WITH RUNNING\tRUN --RM\tPS -N 5\tMEMORY PER CONTAINER\tENGINE")
	for _, f := range figures {
		fmt.Fprintf(tw, "%d\t%s\t%s\t%.2f MB\t%.1f MB\n", f.Running, ms(f.Run), ms(f.PS), float64(f.PerContainer)/1e6, float64(f.Engine)/1e6)
	}
	return tw.Flush()
}
