package runtimecli

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/runtime"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// stateJSON is the specification's state, with what runc adds.
type stateJSON struct {
	Version     string            `json:"ociVersion"`
	ID          string            `json:"id"`
	Pid         int               `json:"pid"`
	Status      runtime.Status    `json:"status"`
	Bundle      string            `json:"bundle"`
	Rootfs      string            `json:"rootfs"`
	Created     time.Time         `json:"created"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Owner       string            `json:"owner"`
}

func describe(ctr *runtime.Container) (stateJSON, error) {
	st, err := ctr.State()
	if err != nil {
		return stateJSON{}, err
	}
	owner := strconv.Itoa(st.Owner)
	if u, err := user.LookupId(owner); err == nil {
		owner = u.Username
	}
	return stateJSON{specs.Version, st.ID, st.Pid, st.Status, st.Bundle, st.Rootfs, st.Created, st.Annotations, owner}, nil
}

func printJSON(w io.Writer, v any, indent bool) error {
	enc := json.NewEncoder(w)
	if indent {
		enc.SetIndent("", "  ")
	}
	return enc.Encode(v)
}

func state(c *call, _ *flag.FlagSet) func([]string) (int, error) {
	return func(args []string) (int, error) {
		id, err := one(args)
		if err != nil {
			return 1, err
		}
		ctr, err := c.load(id)
		if err != nil {
			return 1, err
		}
		defer ctr.Close()
		st, err := describe(ctr)
		if err != nil {
			return 1, err
		}
		return 0, printJSON(c.Out, st, true)
	}
}

func signalOf(s string) (unix.Signal, error) {
	if n, err := strconv.Atoi(s); err == nil {
		if n < 0 || n > 64 {
			return 0, errs.New(errs.Invalid, "signal %s is unknown", s)
		}
		return unix.Signal(n), nil
	}
	name := strings.ToUpper(s)
	if !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	if sig := unix.SignalNum(name); sig != 0 {
		return sig, nil
	}
	var n int
	if rest, ok := strings.CutPrefix(name, "SIGRTMIN+"); ok {
		if _, err := fmt.Sscanf(rest, "%d", &n); err == nil && n >= 0 && n <= 30 {
			return unix.Signal(34 + n), nil
		}
	}
	return 0, errs.New(errs.Invalid, "signal %s is unknown", s)
}

func kill(c *call, fs *flag.FlagSet) func([]string) (int, error) {
	all := fs.Bool("all", false, "send it to every process of the container")
	fs.BoolVar(all, "a", false, "short for --all")
	return func(args []string) (int, error) {
		if len(args) < 1 || len(args) > 2 {
			return 1, errs.New(errs.Invalid, "a container's id, and perhaps a signal, are needed")
		}
		sig := unix.SIGTERM
		if len(args) == 2 {
			var err error
			if sig, err = signalOf(args[1]); err != nil {
				return 1, err
			}
		}
		ctr, err := c.load(args[0])
		if err != nil {
			return 1, err
		}
		return 0, errors.Join(ctr.Kill(c.ctx, sig, *all), ctr.Close())
	}
}

func remove(c *call, fs *flag.FlagSet) func([]string) (int, error) {
	force := fs.Bool("force", false, "kill it first")
	fs.BoolVar(force, "f", false, "short for --force")
	return func(args []string) (int, error) {
		id, err := one(args)
		if err != nil {
			return 1, err
		}
		ctr, err := c.load(id)
		if errors.Is(err, errs.NotFound) && *force {
			return 0, nil
		}
		if err != nil {
			return 1, err
		}
		return 0, ctr.Delete(c.ctx, *force)
	}
}

func list(c *call, fs *flag.FlagSet) func([]string) (int, error) {
	format := fs.String("format", "table", "table or json")
	fs.StringVar(format, "f", "table", "short for --format")
	quiet := fs.Bool("quiet", false, "ids only")
	fs.BoolVar(quiet, "q", false, "short for --quiet")
	return func([]string) (int, error) {
		ids, err := c.rt.List()
		if err != nil {
			return 1, err
		}
		all := []stateJSON{}
		for _, id := range ids {
			if *quiet {
				fmt.Fprintln(c.Out, id)
				continue
			}
			ctr, err := c.load(id)
			if errors.Is(err, errs.NotFound) {
				continue // deleted meanwhile
			}
			if err != nil {
				return 1, err
			}
			st, err := describe(ctr)
			if err = errors.Join(err, ctr.Close()); err != nil {
				return 1, err
			}
			all = append(all, st)
		}
		switch {
		case *quiet:
			return 0, nil
		case *format == "json":
			return 0, printJSON(c.Out, all, false)
		case *format != "table":
			return 1, errs.New(errs.Invalid, "--format %q: must be table or json", *format)
		}
		w := tabwriter.NewWriter(c.Out, 12, 1, 3, ' ', 0)
		fmt.Fprint(w, "ID\tPID\tSTATUS\tBUNDLE\tCREATED\tOWNER\n")
		for _, st := range all {
			fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\t%s\n", st.ID, st.Pid, st.Status, st.Bundle, st.Created.Format(time.RFC3339Nano), st.Owner)
		}
		return 0, w.Flush()
	}
}

func ps(c *call, fs *flag.FlagSet) func([]string) (int, error) {
	format := fs.String("format", "table", "table or json")
	fs.StringVar(format, "f", "table", "short for --format")
	return func(args []string) (int, error) {
		if len(args) == 0 {
			return 1, errs.New(errs.Invalid, "a container's id is needed")
		}
		ctr, err := c.load(args[0])
		if err != nil {
			return 1, err
		}
		defer ctr.Close()
		pids, err := ctr.Pids()
		if err != nil {
			return 1, err
		}
		if *format == "json" {
			if pids == nil {
				pids = []int{}
			}
			return 0, printJSON(c.Out, pids, false)
		}
		if *format != "table" {
			return 1, errs.New(errs.Invalid, "--format %q: must be table or json", *format)
		}
		return 0, psTable(c.Out, pids, args[1:])
	}
}

// psTable shows the lines of ps(1) for the processes.
func psTable(w io.Writer, pids []int, args []string) error {
	if len(args) == 0 {
		args = []string{"-ef"}
	}
	out, err := exec.Command("ps", args...).Output()
	if err != nil {
		return fmt.Errorf("ps: %w", err)
	}
	lines := strings.Split(strings.TrimRight(string(out), "\n"), "\n")
	column := -1
	for i, name := range strings.Fields(lines[0]) {
		if name == "PID" {
			column = i
		}
	}
	if column < 0 {
		return errs.New(errs.Invalid, "ps %s: has no PID column", strings.Join(args, " "))
	}
	ours := map[string]bool{}
	for _, pid := range pids {
		ours[strconv.Itoa(pid)] = true
	}
	fmt.Fprintln(w, lines[0])
	for _, line := range lines[1:] {
		if f := strings.Fields(line); len(f) > column && ours[f[column]] {
			fmt.Fprintln(w, line)
		}
	}
	return nil
}

// specFile writes a config.json.
func spec(c *call, fs *flag.FlagSet) func([]string) (int, error) {
	bundle := fs.String("bundle", "", "`folder` to write to; the working directory if empty")
	fs.StringVar(bundle, "b", "", "short for --bundle")
	rootless := fs.Bool("rootless", false, "for an ordinary user")
	return func([]string) (int, error) {
		name := "config.json"
		if *bundle != "" {
			name = *bundle + "/" + name
		}
		f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
		if err != nil {
			return 1, fmt.Errorf("spec: %w", err)
		}
		example := runtime.ExampleSpec()
		if *rootless {
			runtime.MakeRootless(example, os.Geteuid(), os.Getegid())
		}
		enc := json.NewEncoder(f)
		enc.SetIndent("", "\t")
		return 0, errors.Join(enc.Encode(example), f.Close())
	}
}

func features(c *call, _ *flag.FlagSet) func([]string) (int, error) {
	return func([]string) (int, error) {
		return 0, printJSON(c.Out, runtime.Features(), true)
	}
}
