package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/pflag"

	"corten.dev/corten/internal/cli/engineapi"
)

func newAttach() *verb {
	var noStdin, sigProxy bool
	var detachKeys string
	return &verb{
		use: "[OPTIONS] CONTAINER", min: 1, max: 1, names: runningContainers,
		short: "Join the streams of a running container",
		long: "Connects this terminal with the input and output of the container's own command, and stays until it ends; then the\n" +
			"exit code is the command's. The detach keys leave the container running.",
		example: "corten attach web\ncorten attach --no-stdin --sig-proxy=false web",
		flags: func(f *pflag.FlagSet) {
			f.BoolVar(&noStdin, "no-stdin", false, "do not pass STDIN on")
			f.BoolVar(&sigProxy, "sig-proxy", true, "pass signals on to the command")
			f.StringVar(&detachKeys, "detach-keys", "", "keys that detach from the container (default ctrl-p,ctrl-q)")
		},
		run: func(ctx context.Context, a *app, args []string) error {
			api, err := a.engine()
			if err != nil {
				return err
			}
			ctr, err := inspectState(ctx, api, args[0])
			if err != nil {
				return err
			}
			switch {
			case !ctr.State.Running:
				return &exitError{code: 1, text: "You cannot attach to a stopped container, start it first"}
			case ctr.State.Paused:
				return &exitError{code: 1, text: "You cannot attach to a paused container, unpause it first"}
			case ctr.State.Restarting:
				return &exitError{code: 1, text: "You cannot attach to a restarting container, wait until it is running"}
			}
			keys, err := a.detachKeys(detachKeys)
			if err != nil {
				return err
			}
			j := &attachment{app: a, api: api, id: ctr.ID, tty: ctr.Config.Tty, keys: keys, sigProxy: sigProxy && !ctr.Config.Tty,
				stdin: !noStdin && ctr.Config.OpenStdin, stdout: true, stderr: true}
			if err := a.needTTY(j.tty, j.stdin); err != nil {
				return err
			}
			return j.join(ctx)
		},
	}
}

// ctrState is the little that attach and start have to know.
type ctrState struct {
	ID    string `json:"Id"`
	State struct{ Running, Paused, Restarting bool }

	Config     struct{ Tty, OpenStdin bool }
	HostConfig struct{ AutoRemove bool }
}

func inspectState(ctx context.Context, api *engineapi.Client, name string) (*ctrState, error) {
	var ctr ctrState
	return &ctr, api.Get(ctx, "/containers/"+esc(name)+"/json", nil, &ctr)
}

// join attaches to a container that runs already. Who leaves by the detach keys is told so, with errDetached, as by docker's attach.
func (j *attachment) join(ctx context.Context) error {
	waiting := make(chan waited, 1)
	go func() {
		resp, err := j.api.Do(ctx, engineapi.Request{Method: "POST", Path: "/containers/" + j.id + "/wait"})
		waiting <- waited{resp, err}
	}()
	conn, err := attach(ctx, j.api, j.id, j.attachQuery())
	if err != nil {
		return err
	}
	if j.sigProxy {
		defer j.app.proxySignals(ctx, j.api, j.id)()
	}
	s := j.session(conn)
	s.redraw = true
	if err := s.run(ctx); err != nil {
		return err
	}
	w := <-waiting
	if w.err != nil {
		return w.err
	}
	defer w.resp.Body.Close()
	return exitOf(w)
}

func newStart() *verb {
	var attachOut, interactive bool
	var detachKeys, checkpoint, checkpointDir string
	return &verb{
		use: "[OPTIONS] CONTAINER [CONTAINER...]", min: 1, max: -1, names: containers,
		short:   "Start stopped containers",
		long:    "Starts containers that were created or have ended, with the settings they were made with.",
		example: "corten start web db\ncorten start -a job",
		flags: func(f *pflag.FlagSet) {
			f.BoolVarP(&attachOut, "attach", "a", false, "stay with the container: output and signals pass through")
			f.BoolVarP(&interactive, "interactive", "i", false, "pass STDIN on, too")
			f.StringVar(&detachKeys, "detach-keys", "", "keys that detach from the container (default ctrl-p,ctrl-q)")
			f.StringVar(&checkpoint, "checkpoint", "", "restore from this checkpoint")
			f.StringVar(&checkpointDir, "checkpoint-dir", "", "where checkpoints are kept")
		},
		run: func(ctx context.Context, a *app, args []string) error {
			api, err := a.engine()
			if err != nil {
				return err
			}
			if (attachOut || interactive) && len(args) > 1 {
				return &exitError{code: 1, text: "you cannot start and attach multiple containers at once"}
			}
			if attachOut || interactive {
				if checkpoint != "" || checkpointDir != "" {
					return &exitError{code: 1, text: "--attach and --interactive cannot be used with --checkpoint"}
				}
				return startAttached(ctx, a, api, args[0], detachKeys, interactive)
			}
			var bad []string
			for _, name := range args {
				q := query("checkpoint", checkpoint, "checkpoint-dir", checkpointDir)
				if err := api.Post(ctx, "/containers/"+esc(name)+"/start", q, nil, nil); err != nil {
					fmt.Fprintln(a.Err, a.explain(err))
					if errors.As(err, new(*reachError)) {
						return &exitError{code: 1}
					}
					bad = append(bad, name)
					continue
				}
				fmt.Fprintln(a.Out, name)
			}
			if len(bad) > 0 {
				return &exitError{code: 1, text: "Error: failed to start containers: " + joinComma(bad)}
			}
			return nil
		},
	}
}

func startAttached(ctx context.Context, a *app, api *engineapi.Client, name, detachKeys string, interactive bool) error {
	ctr, err := inspectState(ctx, api, name)
	if err != nil {
		return err
	}
	keys, err := a.detachKeys(detachKeys)
	if err != nil {
		return err
	}
	j := &attachment{app: a, api: api, id: ctr.ID, tty: ctr.Config.Tty, keys: keys, sigProxy: !ctr.Config.Tty, rm: ctr.HostConfig.AutoRemove,
		stdin: interactive && ctr.Config.OpenStdin, stdout: true, stderr: true}
	if err := a.needTTY(j.tty, j.stdin); err != nil {
		return err
	}
	if !ctr.State.Running {
		return j.run(ctx)
	}
	if err := j.join(ctx); !errors.Is(err, errDetached) {
		return err
	}
	return nil
}
