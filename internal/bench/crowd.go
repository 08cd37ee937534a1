package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
)

// Crowd is a noun of which an engine is given many, to see that nothing which has nothing to do with them gets slower.
type Crowd struct {
	Noun  string
	Count int
	// Make are the arguments that make number i.
	Make func(i int) []string
	// List are the arguments that list them all.
	List []string
	// Use is a run that uses one of them.
	Use []string
}

// Volumes are named volumes.
func Volumes(n int) Crowd {
	return Crowd{
		Noun: "volumes", Count: n, List: []string{"volume", "ls", "-q"},
		Make: func(i int) []string { return []string{"volume", "create", fmt.Sprintf("bench-volume-%d", i)} },
		Use:  []string{"run", "--rm", "-v", "bench-volume-0:/data", benchImage, "true"},
	}
}

// CrowdFigure is what an engine needs while there are so many of a noun.
type CrowdFigure struct {
	Noun           string
	Count          int
	Run, Use, List Spread
	Boot           time.Duration // until the first answer of an engine that finds them
	Engine         int64         // PSS bytes
}

// Crowds measures starts, listing and the engine's own start without and with each crowd; they come on top of each other.
func Crowds(ctx context.Context, e *Engine, crowds []Crowd, progress io.Writer) (figures []CrowdFigure, err error) {
	if err := e.Start(ctx); err != nil {
		return nil, errors.Join(err, e.Stop())
	}
	defer func() { err = errors.Join(err, e.Stop()) }()
	for _, c := range crowds {
		if err := e.Do(c.Make(0)...); err != nil {
			return figures, err
		}
		few, err := e.crowd(ctx, c, 1)
		if err != nil {
			return figures, err
		}
		fmt.Fprintf(progress, "making %d %s\n", c.Count, c.Noun)
		for i := 1; i < c.Count; i++ {
			if err := e.Do(c.Make(i)...); err != nil {
				return figures, err
			}
		}
		many, err := e.crowd(ctx, c, c.Count)
		if err != nil {
			return figures, err
		}
		figures = append(figures, few, many)
	}
	return figures, nil
}

func (e *Engine) crowd(ctx context.Context, c Crowd, n int) (CrowdFigure, error) {
	f := CrowdFigure{Noun: c.Noun, Count: n}
	begin := time.Now()
	if err := errors.Join(e.halt(), e.StartOnly(ctx)); err != nil {
		return f, err
	}
	f.Boot = time.Since(begin)
	err := inTurns([]turn{
		{&f.Run, func() error { return e.run(nil, nil, "run", "--rm", benchImage, "true") }},
		{&f.Use, func() error { return e.run(nil, nil, c.Use...) }},
		{&f.List, func() error { return e.run(nil, io.Discard, c.List...) }},
	})
	if err != nil {
		return f, err
	}
	use, err := e.pss()
	f.Engine = use.engine
	return f, err
}

// PrintCrowds writes the table for people.
func PrintCrowds(w io.Writer, label string, figures []CrowdFigure) error {
	tw := tabwriter.NewWriter(w, 2, 4, 2, ' ', 0)
	fmt.Fprintln(tw, strings.ToUpper(label)+" WITH\tRUN --RM: MEDIAN (MIN)\tWITH ONE OF THEM\tLIST\tSTOP AND START OF THE ENGINE\tENGINE")
	for _, f := range figures {
		fmt.Fprintf(tw, "%d %s\t%s\t%s\t%s\t%s\t%.1f MB\n", f.Count, f.Noun, f.Run, f.Use, f.List, ms(f.Boot), float64(f.Engine)/1e6)
	}
	return tw.Flush()
}
