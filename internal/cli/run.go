package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/spf13/pflag"

	"corten.dev/corten/internal/cli/engineapi"
	"corten.dev/corten/internal/cli/term"
	"corten.dev/corten/internal/http1"
)

type runOptions struct {
	ctrFlags
	detach     bool
	sigProxy   bool
	detachKeys string
}

func newRun() *verb {
	var o runOptions
	v := &verb{
		use: "[OPTIONS] IMAGE [COMMAND] [ARG...]", min: 1, max: -1, stopAtArg: true, names: images,
		short: "Make a container from an image and start it",
		long: "Makes a container, starts it and stays with it until it ends, as if its command ran here: output, input (-i), a\n" +
			"terminal (-t), signals and the exit code pass through. With -d it prints the container's ID and comes back at once.\n\n" +
			"The exit code is the command's own; 125 when the engine could not run the container, 126 when the command cannot be\n" +
			"executed, 127 when it was not found, 128+n when signal n ended it.",
		example: "corten run --rm busybox echo hello\ncorten run -it --rm debian bash\ncorten run -d --name web -p 8080:80 nginx",
		flags: func(f *pflag.FlagSet) {
			o.register(f)
			f.BoolVarP(&o.detach, "detach", "d", false, "run in the background and print the container's ID")
			f.BoolVar(&o.sigProxy, "sig-proxy", true, "pass signals on to the command")
			f.StringVar(&o.detachKeys, "detach-keys", "", "keys that detach from the container (default ctrl-p,ctrl-q)")
		},
	}
	v.run = func(ctx context.Context, a *app, args []string) error {
		err := o.run(ctx, a, v, args)
		var exit *exitError
		if err == nil || errors.As(err, &exit) || errors.As(err, new(*usageError)) {
			return err
		}
		return withHelp("run", a.explain(err), startCode(err))
	}
	return v
}

// startCode is the exit code for a container that did not start.
func startCode(err error) int {
	if !errors.As(err, new(*engineapi.Error)) {
		return 125
	}
	has := func(texts ...string) bool {
		return slices.ContainsFunc(texts, func(text string) bool { return strings.Contains(err.Error(), text) })
	}
	switch {
	case has("executable file not found", "no such file or directory", "system cannot find the file specified"):
		return 127
	case has("permission denied", "is a directory", "exec format error"):
		return 126
	}
	return 125
}

func (o *runOptions) run(ctx context.Context, a *app, v *verb, args []string) error {
	req, err := o.toRequest(v.set, args)
	if err != nil {
		return err
	}
	if o.detach {
		if len(o.attach) > 0 {
			return &exitError{code: 1, text: "conflicting options: cannot specify both --attach and --detach"}
		}
		req.AttachStdin, req.AttachStdout, req.AttachStderr, req.StdinOnce = false, false, false, false
	} else if err := a.needTTY(o.tty, req.AttachStdin); err != nil {
		return err
	}
	if req.Tty {
		size := a.winsize()
		req.HostConfig.ConsoleSize = [2]uint{size.Height, size.Width}
	}
	api, err := a.engine()
	if err != nil {
		return err
	}
	keys, err := a.detachKeys(o.detachKeys)
	if err != nil {
		return err
	}
	job := &attachment{app: a, api: api, tty: o.tty, keys: keys, rm: o.rm, sigProxy: o.sigProxy && !o.tty, stdin: req.AttachStdin, stdout: req.AttachStdout, stderr: req.AttachStderr}
	if !o.detach && !o.tty && o.cidfile == "" && (job.stdin || job.stdout || job.stderr) { // an ID that cannot be written to its file must stop the container from being started
		return job.runAtOnce(ctx, &o.ctrFlags, req)
	}
	id, err := a.create(ctx, api, &o.ctrFlags, req)
	if err != nil {
		return err
	}
	if o.detach {
		if err := api.Post(ctx, "/containers/"+id+"/start", query("detachKeys", keys.text), nil, nil); err != nil {
			return err
		}
		fmt.Fprintln(a.Out, id)
		return nil
	}
	job.id = id
	return job.run(ctx)
}

// attachment is a start with our streams attached. Attach and wait go out side by side, before the start:
//
//	attach ──▶ 101            (the stream is ours)
//	wait   ──▶ 200, head      (the exit cannot be missed any more; the body comes at the end)
//	start  ──▶ 204
//	stream … end              wait's body: the exit code
type attachment struct {
	app                   *app
	api                   *engineapi.Client
	id                    string
	tty                   bool
	stdin, stdout, stderr bool
	keys                  detachKeys
	rm, sigProxy          bool
}

func (j *attachment) run(ctx context.Context) error {
	waiting := make(chan waited, 1)
	go func() { waiting <- j.wait(ctx) }()
	var conn *http1.Upgraded
	if j.stdin || j.stdout || j.stderr {
		up, err := attach(ctx, j.api, j.id, j.attachQuery())
		if err != nil {
			return err
		}
		conn = up
	}
	w := <-waiting
	if w.err != nil {
		if conn != nil {
			conn.Close()
		}
		return w.err
	}
	defer w.resp.Body.Close()
	if j.sigProxy {
		defer j.app.proxySignals(ctx, j.api, j.id)()
	}
	if err := j.api.Post(ctx, "/containers/"+j.id+"/start", nil, nil, nil); err != nil {
		if conn != nil {
			conn.Close()
		}
		if j.rm { // the engine removes it: leave nothing behind before we end
			j.settle(w)
		}
		return err
	}
	if conn != nil {
		err := j.session(conn).run(ctx)
		if errors.Is(err, errDetached) {
			return nil
		}
		if err := j.streamed(err); err != nil {
			return err
		}
	}
	return exitOf(w)
}

// streamed looks at how the stream of a container ended. What we could not write ends the command, as docker's, while the container goes on; for what the connection says, the exit counts.
func (j *attachment) streamed(err error) error {
	if errors.As(err, new(*engineapi.OutputError)) {
		return &exitError{code: 1, text: err.Error()}
	}
	if err != nil {
		j.app.debugf("stream of %s: %v", j.id, err)
	}
	return nil
}

// settle waits for the engine to have removed a container that did not start, but not for ever.
func (j *attachment) settle(w waited) {
	done := make(chan struct{})
	go func() { io.Copy(io.Discard, w.resp.Body); close(done) }()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
	}
}

func (j *attachment) attachQuery() []string {
	return []string{"stream", "1", "stdin", flag1(j.stdin), "stdout", flag1(j.stdout), "stderr", flag1(j.stderr), "detachKeys", j.keys.text}
}

func (j *attachment) session(conn *http1.Upgraded) *session {
	s := &session{app: j.app, conn: conn, tty: j.tty, stdin: j.stdin, out: j.app.Out, err: j.app.Err, detachKeys: j.keys.keys}
	s.resize = resizer(j.app, j.api, "/containers/"+j.id+"/resize")
	return s
}

// resizer tells the engine a new size. A container that has ended meanwhile is no error worth showing.
func resizer(a *app, api *engineapi.Client, path string) func(term.Size) {
	return func(size term.Size) {
		q := query("h", itoa(int(size.Height)), "w", itoa(int(size.Width)))
		if err := api.Post(context.Background(), path, q, nil, nil); err != nil {
			a.debugf("resize: %v", err)
		}
	}
}

func attach(ctx context.Context, api *engineapi.Client, id string, pairs []string) (*http1.Upgraded, error) {
	return api.Hijack(ctx, engineapi.Request{Method: "POST", Path: "/containers/" + esc(id) + "/attach", Query: query(pairs...)})
}

// waited is a wait request whose head has come.
type waited struct {
	resp *http1.Response
	err  error
}

func (j *attachment) wait(ctx context.Context) waited {
	condition := "next-exit"
	if j.rm {
		condition = "removed"
	}
	return j.waitFor(ctx, condition)
}

func (j *attachment) waitFor(ctx context.Context, condition string) waited {
	resp, err := j.api.Do(ctx, engineapi.Request{Method: "POST", Path: "/containers/" + esc(j.id) + "/wait", Query: query("condition", condition)})
	return waited{resp, err}
}

// exitOf reads the end of a wait and makes it our own exit code.
func exitOf(w waited) error {
	var end container.WaitResponse
	if err := json.NewDecoder(w.resp.Body).Decode(&end); err != nil {
		return &exitError{code: 125, text: fmt.Sprintf("error waiting for container: %v", err)}
	}
	if end.Error != nil && end.Error.Message != "" {
		return &exitError{code: 125, text: "error waiting for container: " + end.Error.Message}
	}
	if end.StatusCode == 0 {
		return nil
	}
	return &exitError{code: int(end.StatusCode)}
}
