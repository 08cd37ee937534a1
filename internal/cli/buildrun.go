package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"corten.dev/corten/internal/buildwire"
	"corten.dev/corten/internal/cli/buildprogress"
	"corten.dev/corten/internal/cli/engineapi"
	"corten.dev/corten/internal/cli/term"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/http1"
)

// errLast ends the reading of a connection whose last frame has come.
var errLast = errors.New("the build has ended")

// exitCanceled is the exit code of a build that its user cancelled.
const exitCanceled = 130

// cancellable is a context that ends with Ctrl-C, SIGTERM or the terminal: for what must not leave half of a file, or an agent with keys, behind.
func cancellable(ctx context.Context) (context.Context, context.CancelFunc) {
	return signal.NotifyContext(ctx, heeded(os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)...)
}

// buildDisplay makes the view that the flags ask for.
func (a *app) buildDisplay(mode string, quiet bool, title string) (*buildprogress.Display, error) {
	if mode == "" {
		mode = os.Getenv("BUILDKIT_PROGRESS")
	}
	if quiet {
		mode = buildprogress.Quiet
	}
	o := buildprogress.Options{Out: a.Err, Mode: mode, Title: title, Colour: colourful()}
	if fd, ok := terminalFd(a.Err); ok {
		o.Size = func() (int, int) {
			size, err := term.GetSize(fd)
			if err != nil || size.Width == 0 || size.Height == 0 {
				return 80, 25 // a terminal that does not know its size
			}
			return int(size.Width), int(size.Height)
		}
	}
	return buildprogress.New(o)
}

// runBuild asks for one build and stays until it has ended. The display gets what happens; drawing its end is the caller's.
func (a *app) runBuild(ctx context.Context, p *buildPlan, d *buildprogress.Display) (buildwire.Response, error) {
	var resp buildwire.Response
	api, err := a.engine()
	if err != nil {
		return resp, err
	}
	p.req.Descriptors = canHand && a.ep.Socket() != ""
	up, err := api.Hijack(ctx, engineapi.Request{Method: "POST", Path: buildwire.Path, In: p.req})
	if ctx.Err() != nil {
		return resp, canceled()
	}
	if err != nil {
		return resp, notOurs(err)
	}
	session := &buildSession{app: a, plan: p, display: d, agents: map[string]string{}}
	defer session.end()
	var failure *buildwire.Error
	ended := false
	report := func(kind buildwire.Kind, data []byte) error {
		switch kind {
		case buildwire.Status:
			return d.Update(data, p.prefix)
		case buildwire.Result:
			ended = true
			if err := json.Unmarshal(data, &resp); err != nil {
				return fmt.Errorf("read the result of the build: %w", err)
			}
		case buildwire.Failure:
			ended = true
			failure = &buildwire.Error{}
			if err := json.Unmarshal(data, failure); err != nil {
				return fmt.Errorf("read the error of the build: %w", err)
			}
		}
		return errLast
	}
	conn := buildwire.NewClient(carrierOf(up), func(q *buildwire.Stream, ask buildwire.Ask) { session.answer(ctx, q, ask) }, report)
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	err = conn.Run()
	stop()
	conn.Close()
	if ctx.Err() == nil {
		conn.Wait() // what came before the last frame is still to be written out
	}
	switch {
	case ctx.Err() != nil && !ended:
		d.Cancel()
		return resp, canceled()
	case failure != nil:
		return resp, failure
	case !errors.Is(err, errLast) && (err == io.EOF || ended):
		return resp, errs.New(errs.Unavailable, "the engine ended in the middle of the build")
	case !errors.Is(err, errLast):
		return resp, fmt.Errorf("connection of the build: %w", err)
	}
	return resp, p.commit()
}

func canceled() error {
	return &buildwire.Error{Message: "Canceled: context canceled", Canceled: true}
}

// notOurs explains what a docker engine says to our door.
func notOurs(err error) error {
	var e *engineapi.Error
	if errors.As(err, &e) && e.Status == 404 {
		return &exitError{code: 1, text: "ERROR: this engine has no door for corten's builds (it is no corten engine, or an older one); use docker build with it"}
	}
	return err
}

// commit gives files of outputs their names.
func (p *buildPlan) commit() error {
	for _, s := range p.sinks {
		if s.temp == "" {
			continue
		}
		if err := rename(s.temp, s.file); err != nil {
			return err
		}
		s.temp = ""
	}
	return nil
}

// drop removes what outputs of a failed build left.
func (p *buildPlan) drop() {
	for _, s := range p.sinks {
		if s.temp != "" {
			_ = os.Remove(s.temp) // the build's error says more
		}
	}
}

// buildFailed prints the end of a build that failed, as docker does: the lines of the Dockerfile that are meant, then the error.
func (a *app) buildFailed(err error) error {
	var e *buildwire.Error
	if !errors.As(err, &e) {
		return err
	}
	for i := range e.Sources {
		src, ranges := wireSource(&e.Sources[i])
		if perr := src.Lines(a.Err, ranges); perr != nil {
			return perr
		}
	}
	code := 1
	if e.Canceled {
		code = exitCanceled
	}
	text := e.Message
	if !strings.HasPrefix(text, "failed to solve: ") {
		text = "failed to solve: " + text
	}
	return &exitError{code: code, text: "ERROR: failed to build: " + text}
}

func wireSource(s *buildwire.Source) (*buildprogress.Source, []buildprogress.Range) {
	var ranges []buildprogress.Range
	for _, r := range s.Ranges {
		ranges = append(ranges, buildprogress.Range{Start: buildprogress.Position(r.Start), End: buildprogress.Position(r.End)})
	}
	return &buildprogress.Source{Filename: s.Filename, Language: s.Language, Data: s.Data}, ranges
}

// buildCarrier is the connection after its upgrade.
type buildCarrier struct{ *http1.Upgraded }

func carrierOf(up *http1.Upgraded) buildwire.Carrier { return buildCarrier{up} }
