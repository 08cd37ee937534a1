package cli

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/spf13/pflag"

	"corten.dev/corten/internal/cli/engineapi"
	"corten.dev/corten/internal/cli/parse"
)

type execOptions struct {
	env, envFile                         []string
	user, workdir, detachKeys            string
	detach, interactive, tty, privileged bool
}

func newExec() *verb {
	var o execOptions
	v := &verb{
		use: "[OPTIONS] CONTAINER COMMAND [ARG...]", min: 2, max: -1, stopAtArg: true, names: runningContainers,
		short:   "Run a further command in a running container",
		long:    "Runs a command beside the container's own and stays with it; the exit code is the command's.\n126 means that it cannot be executed, 127 that it was not found.",
		example: "corten exec web ls /\ncorten exec -it web sh\ncorten exec -u 1000 -w /srv -e DEBUG=1 web ./check",
		flags: func(f *pflag.FlagSet) {
			list(f, &o.env, "env", "e", "set an environment variable; NAME alone takes the client's own value")
			list(f, &o.envFile, "env-file", "", "read environment variables from a file")
			f.StringVarP(&o.user, "user", "u", "", "user to run as: <name|uid>[:<group|gid>]")
			f.StringVarP(&o.workdir, "workdir", "w", "", "working directory inside the container")
			f.BoolVarP(&o.detach, "detach", "d", false, "run in the background")
			f.BoolVarP(&o.interactive, "interactive", "i", false, "keep STDIN open")
			f.BoolVarP(&o.tty, "tty", "t", false, "give the command a terminal")
			f.BoolVar(&o.privileged, "privileged", false, "give the command all privileges")
			f.StringVar(&o.detachKeys, "detach-keys", "", "keys that detach from the command (default ctrl-p,ctrl-q)")
		},
	}
	v.run = func(ctx context.Context, a *app, args []string) error { return o.run(ctx, a, args[0], args[1:]) }
	return v
}

func (o *execOptions) run(ctx context.Context, a *app, name string, cmd []string) error {
	req := container.ExecCreateRequest{User: o.user, Privileged: o.privileged, Tty: o.tty, WorkingDir: o.workdir, Cmd: cmd}
	for _, file := range o.envFile {
		env, err := parse.EnvFile(file, os.LookupEnv)
		if err != nil {
			return err
		}
		req.Env = append(req.Env, env...)
	}
	env, err := parse.Env(o.env, os.LookupEnv)
	if err != nil {
		return err
	}
	req.Env = append(req.Env, env...)
	if !o.detach {
		req.AttachStdin, req.AttachStdout, req.AttachStderr = o.interactive, true, true
		if err := a.needTTY(o.tty, o.interactive); err != nil {
			return err
		}
	}
	api, err := a.engine()
	if err != nil {
		return err
	}
	keys, err := a.detachKeys(o.detachKeys)
	if err != nil {
		return err
	}
	req.DetachKeys = keys.text
	start := container.ExecStartRequest{Detach: o.detach, Tty: o.tty}
	if o.tty && !o.detach {
		if size := a.winsize(); size.Height > 0 {
			start.ConsoleSize = &[2]uint{size.Height, size.Width}
			req.ConsoleSize = start.ConsoleSize
		}
	}
	var made struct{ ID string }
	if err := api.Post(ctx, "/containers/"+esc(name)+"/exec", nil, req, &made); err != nil {
		return err
	}
	path := "/exec/" + esc(made.ID)
	if o.detach {
		return api.Post(ctx, path+"/start", nil, start, nil)
	}
	conn, err := api.Hijack(ctx, engineapi.Request{Method: "POST", Path: path + "/start", In: start})
	if err != nil {
		if code := startCode(err); code != 125 {
			return &exitError{code: code, text: a.explain(err).Error()}
		}
		return err
	}
	s := &session{app: a, conn: conn, tty: o.tty, stdin: o.interactive, out: a.Out, err: a.Err, detachKeys: keys.keys}
	s.resize = resizer(a, api, path+"/resize")
	if err := s.run(ctx); err != nil { // errDetached, too, as docker's
		return err
	}
	return execExit(ctx, api, path)
}

// execExit asks how the command ended. Its output may end a moment before its exit is known; a command that closed its
// output and lives on is left alone after that moment, as docker does.
func execExit(ctx context.Context, api *engineapi.Client, path string) error {
	for pause := time.Millisecond; ; pause *= 2 {
		var state struct {
			Running  bool
			ExitCode *int
		}
		if err := api.Get(ctx, path+"/json", nil, &state); err != nil {
			return &exitError{code: 125, text: fmt.Sprintf("read exit code: %v", err)}
		}
		if state.Running && pause < time.Second {
			time.Sleep(pause)
			continue
		}
		if state.ExitCode == nil || *state.ExitCode == 0 {
			return nil
		}
		return &exitError{code: *state.ExitCode}
	}
}
