package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"

	"corten.dev/corten/internal/buildwire"
	"corten.dev/corten/internal/cli/buildprogress"
	"corten.dev/corten/internal/cli/copied"
	"corten.dev/corten/internal/cli/credentials"
	"corten.dev/corten/internal/errs"
)

// buildSession answers what the engine asks during one build.
type buildSession struct {
	app     *app
	plan    *buildPlan
	display *buildprogress.Display

	mu     sync.Mutex // guards all below
	agents map[string]string
	stops  []func()
	over   bool // end was called: nothing more is begun that it would have to undo
}

// answer handles one question; the engine asks several at once.
func (s *buildSession) answer(ctx context.Context, q *buildwire.Stream, ask buildwire.Ask) {
	defer q.Close()
	err := s.handle(ctx, q, ask)
	if err == nil {
		err = q.End()
	}
	if err != nil {
		_ = q.Fail(err) // a connection that is gone ends the build anyhow
	}
}

func (s *buildSession) handle(ctx context.Context, q *buildwire.Stream, ask buildwire.Ask) error {
	switch ask.What {
	case buildwire.AskContext:
		return s.context(ctx, q, ask)
	case buildwire.AskSecret:
		return s.secret(q, ask.Name)
	case buildwire.AskSSH:
		return s.ssh(ctx, q, ask.Name)
	case buildwire.AskCredentials:
		return s.credentials(ctx, q, ask.Name)
	case buildwire.AskFile:
		return s.file(q, ask.Name)
	case buildwire.AskTree:
		return s.tree(q, ask.Name)
	case buildwire.AskBlob, buildwire.AskPutBlob, buildwire.AskRef, buildwire.AskSetRef:
		return s.layout(q, ask)
	case buildwire.AskShell:
		return s.shell(ctx, q, ask)
	}
	return errs.New(errs.NotImplemented, "this client cannot answer %q", ask.What)
}

// context gives a directory: as a descriptor, or file by file.
func (s *buildSession) context(ctx context.Context, q *buildwire.Stream, ask buildwire.Ask) error {
	dir, ok := s.plan.dirs[ask.Name]
	if !ok {
		return errs.New(errs.NotFound, "no local directory %q was given for this build", ask.Name)
	}
	if ask.Options == nil || !ask.Options.Descriptor {
		return s.mirror(ctx, q, dir, ask)
	}
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := q.Answer(buildwire.Tree{Descriptor: true}); err != nil {
		return err
	}
	return q.Hand(f.Fd())
}

func (s *buildSession) secret(q *buildwire.Stream, id string) error {
	src, ok := s.plan.secrets[id]
	if !ok {
		return errs.New(errs.NotFound, "secret %s: not found", id)
	}
	value, err := src.read()
	if err != nil {
		return err
	}
	_, err = q.Write(value)
	return err
}

// ssh joins the stream with a new connection to the agent.
func (s *buildSession) ssh(ctx context.Context, q *buildwire.Stream, id string) error {
	src, ok := s.plan.agents[id]
	if !ok {
		return errs.New(errs.NotFound, "no SSH agent %q was given for this build", id)
	}
	socket, err := s.agentSocket(ctx, id, src)
	if err != nil {
		return err
	}
	conn, err := dialAgent(ctx, socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	go func() {
		_, _ = io.Copy(conn, q) // its end is the agent's end
		conn.Close()
	}()
	_, err = io.Copy(q, conn)
	if errors.Is(err, net.ErrClosed) {
		err = nil
	}
	return err
}

func (s *buildSession) agentSocket(ctx context.Context, id string, src agentSource) (string, error) {
	if src.socket != "" {
		return src.socket, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock() // held over the start: who else asks needs the same agent
	if socket := s.agents[id]; socket != "" {
		return socket, nil
	}
	if s.over {
		return "", errBuildOver
	}
	socket, stop, err := startAgent(ctx, src.keys)
	if err != nil {
		return "", err
	}
	s.agents[id] = socket
	s.stops = append(s.stops, stop)
	return socket, nil
}

var errBuildOver = errs.New(errs.Unavailable, "the build is over")

// end stops agents of ours, and gives back the terminal that a shell has, which may not have noticed yet.
func (s *buildSession) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.over = true
	for _, stop := range s.stops {
		stop()
	}
	s.stops = nil
}

// credentials looks a registry up, as push does.
func (s *buildSession) credentials(ctx context.Context, q *buildwire.Stream, host string) error {
	file := s.app.logins()
	var login buildwire.Login
	if !file.Nothing() {
		auth, err := file.Get(ctx, credentials.Server(host))
		if err != nil { // a helper of another machine, say: most images can be had without
			s.app.debugf("credentials for %s: %v", host, err)
		}
		login = buildwire.Login{User: auth.Username, Secret: auth.Password}
		if auth.IdentityToken != "" {
			login = buildwire.Login{Secret: auth.IdentityToken}
		}
	}
	return q.Answer(login)
}

// file takes an archive. It gets its name when the build has succeeded.
func (s *buildSession) file(q *buildwire.Stream, id string) error {
	sink := s.plan.sinks[id]
	if sink == nil || sink.file == "" {
		return errs.New(errs.NotFound, "no file was named for output %s", id)
	}
	if sink.file == "-" {
		return copyOut(s.app.Out, q)
	}
	return sink.take(q)
}

func (s *buildSession) tree(q *buildwire.Stream, id string) error {
	sink := s.plan.sinks[id]
	if sink == nil || sink.dir == "" {
		return errs.New(errs.NotFound, "no folder was named for output %s", id)
	}
	if err := copied.UnpackTree(sink.dir, q); err != nil {
		return fmt.Errorf("write to %s: %w", sink.dir, err)
	}
	return nil
}
