package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/spf13/pflag"

	"corten.dev/corten/internal/cli/engineapi"
	"corten.dev/corten/internal/cli/show"
)

func joinComma(s []string) string { return strings.Join(s, ", ") }

// onEach is a verb that does one request per container, so many at a time, and prints the name.
func onEach(v *verb, abreast int, request func(name string) engineapi.Request) *verb {
	v.min, v.max = 1, -1
	v.run = func(ctx context.Context, a *app, args []string) error {
		api, err := a.engine()
		if err != nil {
			return err
		}
		return a.eachAbreast(ctx, api, args, abreast, func(ctx context.Context, i int) error {
			return api.Call(ctx, request(args[i]), nil)
		}, func(i int, err error) error {
			if err == nil {
				fmt.Fprintln(a.Out, args[i])
			}
			return err
		})
	}
	return v
}

func newStop() *verb { return stopOrRestart("stop", "Stop running containers", mostAbreast) }

// newRestart goes one by one: a container may live in the network of the one before.
func newRestart() *verb { return stopOrRestart("restart", "Stop and start containers again", inTurn) }

func stopOrRestart(action, short string, abreast int) *verb {
	var signal string
	var timeout int
	v := &verb{
		use: "[OPTIONS] CONTAINER [CONTAINER...]", short: short, names: runningContainers,
		long:    "Sends the stop signal (the image's, or SIGTERM), waits, and kills what still runs after the time-out.",
		example: "corten " + action + " web\ncorten " + action + " --timeout 30 db",
		flags: func(f *pflag.FlagSet) {
			f.StringVarP(&signal, "signal", "s", "", "signal to send")
			f.IntVarP(&timeout, "timeout", "t", 0, "seconds to wait before killing; -1 waits for ever")
			f.IntVar(&timeout, "time", 0, "same as --timeout")
			f.MarkHidden("time")
		},
	}
	return onEach(v, abreast, func(name string) engineapi.Request {
		q := query("signal", signal)
		if v.changed("timeout") || v.changed("time") {
			q.Set("t", itoa(timeout))
		}
		return engineapi.Request{Method: "POST", Path: "/containers/" + esc(name) + "/" + action, Query: q}
	})
}

func newKill() *verb {
	var signal string
	v := &verb{
		use: "[OPTIONS] CONTAINER [CONTAINER...]", short: "Send a signal to running containers", names: runningContainers,
		long:    "Sends SIGKILL, or another signal, to the first process of each container.",
		example: "corten kill web\ncorten kill -s HUP web",
		flags:   func(f *pflag.FlagSet) { f.StringVarP(&signal, "signal", "s", "", "signal to send (default KILL)") },
	}
	return onEach(v, mostAbreast, func(name string) engineapi.Request {
		return engineapi.Request{Method: "POST", Path: "/containers/" + esc(name) + "/kill", Query: query("signal", signal)}
	})
}

func newPause() *verb {
	v := &verb{use: "CONTAINER [CONTAINER...]", short: "Freeze all processes of containers", names: runningContainers,
		long: "Stops every process of the containers in the middle of what it does, without it noticing.", example: "corten pause web"}
	return onEach(v, mostAbreast, func(name string) engineapi.Request {
		return engineapi.Request{Method: "POST", Path: "/containers/" + esc(name) + "/pause"}
	})
}

func newUnpause() *verb {
	v := &verb{use: "CONTAINER [CONTAINER...]", short: "Let frozen containers go on", names: runningContainers,
		long: "Lets the processes of paused containers go on where they were.", example: "corten unpause web"}
	return onEach(v, mostAbreast, func(name string) engineapi.Request {
		return engineapi.Request{Method: "POST", Path: "/containers/" + esc(name) + "/unpause"}
	})
}

func newRm() *verb {
	var force, link, vols bool
	v := &verb{
		use: "[OPTIONS] CONTAINER [CONTAINER...]", short: "Remove containers", names: containers,
		long:    "Removes stopped containers with everything they wrote. Named volumes stay.",
		example: "corten rm job\ncorten rm -f -v web",
		flags: func(f *pflag.FlagSet) {
			f.BoolVarP(&force, "force", "f", false, "kill a running container first")
			f.BoolVarP(&link, "link", "l", false, "remove the link, not the container")
			f.BoolVarP(&vols, "volumes", "v", false, "remove its anonymous volumes, too")
		},
	}
	return removal(v, goner{noun: "container", tell: true, abreast: mostAbreast}, &force, func(name string) engineapi.Request {
		return engineapi.Request{Method: "DELETE", Path: "/containers/" + esc(strings.Trim(name, "/")),
			Query: query("force", flag1(force), "link", flag1(link), "v", flag1(vols))}
	})
}

// goner is a kind of thing that is removed by name.
type goner struct {
	noun    string
	tell    bool // with -f, what is not there is told, as docker does for containers
	abreast int  // how many at a time
}

// removal is onEach for the verbs that remove things by name. With -f, what is not there is no error.
func removal(v *verb, what goner, force *bool, request func(name string) engineapi.Request) *verb {
	v.min, v.max = 1, -1
	v.run = func(ctx context.Context, a *app, args []string) error {
		api, err := a.engine()
		if err != nil {
			return err
		}
		return a.eachAbreast(ctx, api, args, what.abreast, func(ctx context.Context, i int) error {
			if strings.Trim(args[i], "/ ") == "" {
				return invalid("%s name cannot be empty", what.noun)
			}
			return api.Call(ctx, request(args[i]), nil)
		}, func(i int, err error) error {
			switch {
			case err == nil:
				fmt.Fprintln(a.Out, args[i])
			case *force && isNotFound(err):
				if what.tell {
					fmt.Fprintln(a.Err, a.explain(err))
				}
				return nil
			}
			return err
		})
	}
	return v
}

func newRename() *verb {
	return &verb{
		use: "CONTAINER NEW_NAME", min: 2, max: 2, short: "Give a container another name", names: containers,
		long: "Renames a container, running or not.", example: "corten rename web old-web",
		run: func(ctx context.Context, a *app, args []string) error {
			api, err := a.engine()
			if err != nil {
				return err
			}
			old, name := strings.TrimSpace(args[0]), strings.TrimSpace(args[1])
			if old == "" || name == "" {
				return &exitError{code: 1, text: "Error: Neither old nor new names may be empty"}
			}
			if err := api.Post(ctx, "/containers/"+esc(old)+"/rename", query("name", name), nil, nil); err != nil {
				fmt.Fprintln(a.Err, a.explain(err))
				return &exitError{code: 1, text: "Error: failed to rename container named " + old}
			}
			return nil
		},
	}
}

func newWait() *verb {
	return &verb{
		use: "CONTAINER [CONTAINER...]", min: 1, max: -1, short: "Wait until containers end and print their exit codes", names: containers,
		long: "Blocks until each of the containers has ended, then prints its exit code. For one that does not run that is at once.", example: "corten wait job",
		run: func(ctx context.Context, a *app, args []string) error {
			api, err := a.engine()
			if err != nil {
				return err
			}
			ends := make([]container.WaitResponse, len(args))
			return a.eachAbreast(ctx, api, args, mostAbreast, func(ctx context.Context, i int) error {
				return api.Post(ctx, "/containers/"+esc(args[i])+"/wait", nil, nil, &ends[i])
			}, func(i int, err error) error {
				if err != nil {
					return err
				}
				if end := &ends[i]; end.Error != nil && end.Error.Message != "" {
					return fmt.Errorf("wait for %s: %s", args[i], end.Error.Message)
				}
				fmt.Fprintln(a.Out, ends[i].StatusCode)
				return nil
			})
		},
	}
}

func newTop() *verb {
	return &verb{
		use: "CONTAINER [ps OPTIONS]", min: 1, max: -1, stopAtArg: true, short: "List the processes of a container", names: runningContainers,
		long: "Lists the container's processes as ps on the host sees them; options after the name go to ps.", example: "corten top web\ncorten top web -o pid,args",
		run: func(ctx context.Context, a *app, args []string) error {
			api, err := a.engine()
			if err != nil {
				return err
			}
			var top container.TopResponse
			if err := api.Get(ctx, "/containers/"+esc(args[0])+"/top", query("ps_args", strings.Join(args[1:], " ")), &top); err != nil {
				return err
			}
			lines := []string{strings.Join(top.Titles, "\t")}
			for _, p := range top.Processes {
				lines = append(lines, strings.Join(p, "\t"))
			}
			return show.Tabs(a.Out, 20, 3, lines)
		},
	}
}

func newDiff() *verb {
	return &verb{
		use: "CONTAINER", min: 1, max: 1, short: "List what a container changed in its file system", names: containers,
		long: "Lists the paths that differ from the image: A added, C changed, D deleted.", example: "corten diff web",
		run: func(ctx context.Context, a *app, args []string) error {
			api, err := a.engine()
			if err != nil {
				return err
			}
			var changes []container.FilesystemChange
			if err := api.Get(ctx, "/containers/"+esc(args[0])+"/changes", nil, &changes); err != nil {
				return err
			}
			for _, c := range changes {
				if int(c.Kind) > 2 {
					return fmt.Errorf("unknown kind of change %d for %s", c.Kind, c.Path)
				}
				fmt.Fprintf(a.Out, "%s %s\n", [...]string{"C", "A", "D"}[c.Kind], c.Path)
			}
			return nil
		},
	}
}
