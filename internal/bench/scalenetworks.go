package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// NetworksFigure is what network work needs while an engine has a number of networks and of published ports.
type NetworksFigure struct {
	Networks, Ports             int
	Run, RunOwn, Publish, Verbs Spread
	Engine                      int64 // PSS bytes
}

// portsEach is how many of the published ports one container has.
const portsEach = 50

// ScaleNetworks measures a start on the default bridge, on a network of one's own and with a published port, and network create and rm, first on an empty engine, then with that many
// networks, then with that many published ports besides: none of the starts may grow.
func ScaleNetworks(ctx context.Context, e *Engine, networks, ports int, progress io.Writer) (figures []NetworksFigure, err error) {
	if err := e.Start(ctx); err != nil {
		return nil, errors.Join(err, e.Stop())
	}
	defer func() { err = errors.Join(err, e.Stop()) }()
	if err := e.Do("network", "create", "own"); err != nil {
		return nil, err
	}
	var made []string
	holders := 0
	defer func() {
		for i := range holders {
			err = errors.Join(err, e.Do("rm", "-f", fmt.Sprintf("holder-%d", i)))
		}
		err = errors.Join(err, e.Do(append([]string{"network", "rm", "own"}, made...)...))
	}()
	measure := func(f NetworksFigure) error {
		terr := inTurns([]turn{
			{&f.Run, func() error { return e.Do("run", "--rm", benchImage, "true") }},
			{&f.RunOwn, func() error { return e.Do("run", "--rm", "--network", "own", benchImage, "true") }},
			{&f.Publish, func() error { return e.Do("run", "--rm", "-p", "8080", benchImage, "true") }},
			{&f.Verbs, func() error {
				return errors.Join(e.Do("network", "create", "one-more"), e.Do("network", "rm", "one-more"))
			}},
		})
		now, err := e.pss()
		f.Engine = now.engine
		figures = append(figures, f)
		return errors.Join(terr, err)
	}
	if err := measure(NetworksFigure{}); err != nil {
		return figures, err
	}
	fmt.Fprintf(progress, "making %d networks\n", networks)
	for i := range networks {
		name := fmt.Sprintf("scale-%d", i)
		if err := e.Do("network", "create", name); err != nil {
			return figures, err
		}
		made = append(made, name)
	}
	if err := measure(NetworksFigure{Networks: networks}); err != nil {
		return figures, err
	}
	fmt.Fprintf(progress, "publishing %d ports\n", ports)
	for ; holders < ports/portsEach; holders++ {
		args := []string{"run", "-d", "--name", fmt.Sprintf("holder-%d", holders)}
		for p := range portsEach {
			args = append(args, "-p", fmt.Sprint(7000+p))
		}
		if err := e.Do(append(args, benchImage, "sleep", "100000")...); err != nil {
			return figures, err
		}
	}
	return figures, measure(NetworksFigure{Networks: networks, Ports: ports})
}

// PrintScaleNetworks writes the table for people.
func PrintScaleNetworks(w io.Writer, label string, figures []NetworksFigure) error {
	tw := tabwriter.NewWriter(w, 2, 4, 2, ' ', 0)
	fmt.Fprintln(tw, strings.ToUpper(label)+" WITH NETWORKS\tPORTS\tRUN --RM: MEDIAN (MIN)\t--NETWORK OWN\t-P 8080\tNETWORK CREATE, RM\tENGINE")
	for _, f := range figures {
		fmt.Fprintf(tw, "%d\t%d\t%s\t%s\t%s\t%s\t%.1f MB\n", f.Networks, f.Ports, f.Run, f.RunOwn, f.Publish, f.Verbs, float64(f.Engine)/1e6)
	}
	return tw.Flush()
}
