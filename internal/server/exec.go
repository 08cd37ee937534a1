package server

import (
	"errors"
	"net/http"

	wire "github.com/moby/moby/api/types/container"

	"corten.dev/corten/internal/engine/containers"
	"corten.dev/corten/internal/errs"
)

// execBody is the body of exec create; the command may be one text in older clients.
type execBody struct {
	wire.ExecCreateRequest
	Cmd words
}

func (s *Server) execCreate(w http.ResponseWriter, r *request) error {
	var body execBody
	if err := readJSON(r.Request, &body); err != nil {
		return err
	}
	req, err := toExec(body, r.version)
	if err != nil {
		return err
	}
	id, err := s.Containers.ExecCreate(r.steady(), r.id(), req)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusCreated, wire.ExecCreateResponse{ID: id})
}

func toExec(body execBody, version int) (containers.ExecRequest, error) {
	req := containers.ExecRequest{
		User: body.User, DetachKeys: body.DetachKeys, Env: body.Env, Cmd: body.Cmd, Tty: body.Tty, Privileged: body.Privileged,
		AttachStdin: body.AttachStdin, AttachStdout: body.AttachStdout, AttachStderr: body.AttachStderr,
	}
	if len(body.Cmd) == 0 {
		return req, errs.New(errs.Invalid, "No exec command specified")
	}
	if version >= 35 {
		req.WorkingDir = body.WorkingDir
	}
	if version >= 42 && body.Tty && body.ConsoleSize != nil {
		req.ConsoleSize = *body.ConsoleSize
	}
	return req, nil
}

func (s *Server) execStart(w http.ResponseWriter, r *request) error {
	var body wire.ExecStartRequest
	if _, err := readOptionalJSON(r.Request, &body); err != nil {
		return err
	}
	opts := containers.ExecStart{Detach: body.Detach, Tty: body.Tty}
	if r.version >= 42 && body.Tty && body.ConsoleSize != nil { // passed over without a terminal, as by Docker
		opts.ConsoleSize = *body.ConsoleSize
	}
	if body.Detach {
		if err := s.Containers.ExecStart(r.steady(), r.id(), opts); err != nil {
			return err
		}
		w.WriteHeader(http.StatusOK)
		return nil
	}
	h := &hijack{w: w, r: r, tty: body.Tty}
	opts.Hijack = h.take
	err := s.Containers.ExecStart(r.steady(), r.id(), opts)
	// A command that is not there is told inside the session: the client then asks for the exit code, which is 126 or 127.
	if err != nil && !h.begun && (errors.Is(err, errs.NoCommand) || errors.Is(err, errs.NotExecutable)) {
		err = h.say(err.Error())
	}
	return s.session(h, err)
}

func (s *Server) execResize(w http.ResponseWriter, r *request) error {
	h, width, err := size(r)
	if err != nil {
		return err
	}
	if err := s.Containers.ExecResize(r.Context(), r.id(), h, width); err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

func (s *Server) execInspect(w http.ResponseWriter, r *request) error {
	view, err := s.Containers.ExecInspect(r.Context(), r.id())
	if err != nil {
		return err
	}
	out := wire.ExecInspectResponse{
		ID: view.ID, Running: view.Running, ExitCode: view.ExitCode, ContainerID: view.Container, Pid: view.PID, CanRemove: view.CanRemove,
		OpenStdin: view.AttachStdin, OpenStdout: view.AttachStdout, OpenStderr: view.AttachStderr, DetachKeys: []byte(view.DetachKeys),
		ProcessConfig: &wire.ExecProcessConfig{Tty: view.Tty, Privileged: &view.Privileged, User: view.User, Arguments: []string{}},
	}
	if len(view.Cmd) > 0 {
		out.ProcessConfig.Entrypoint, out.ProcessConfig.Arguments = view.Cmd[0], view.Cmd[1:]
	}
	return ok(w, out)
}
