package server

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	wirebuild "github.com/moby/moby/api/types/build"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/engine/builds"
	"corten.dev/corten/internal/errs"
)

// Builds with BuildKit of docker's clients before 23.0, which have no buildx (DOCKER_BUILDKIT=1 docker build): the client's session beside a POST /build of version 2.
//
//	POST /session, Upgrade: h2c                                  directories, secrets, agents, credentials, results
//	POST /build?version=2&session=…&remote=client-session        ◀── {"id":"moby.buildkit.trace","aux":"<StatusResponse>"} … {"id":"moby.image.id","aux":{"ID":"sha256:…"}}
//	POST /build?version=2&buildid=upload-request:<id>            an archive that is the context, when remote=upload-request
const (
	clientSession = "client-session"
	uploadRequest = "upload-request"
	// uploadWait is how long the two requests of one build wait for each other.
	uploadWait = 30 * time.Second
)

// sessionBuild is such a build.
func (s *Server) sessionBuild(w http.ResponseWriter, r *request) error {
	if s.BuildKit == nil {
		return errs.New(errs.NotImplemented, "this engine was started without the service for builds")
	}
	id := r.query.get("buildid")
	if id, ok := strings.CutPrefix(id, uploadRequest+":"); ok {
		return s.handIn(r, id)
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	defer context.AfterFunc(s.streams, cancel)()
	req, err := s.sessionRequest(ctx, r)
	if err != nil {
		return err
	}
	if id != "" {
		req.Ref = id
		remove, err := s.cancels.add(id, cancel)
		if err != nil {
			return err
		}
		defer remove()
	}
	p := newProgress(w, false)
	aux := func(id string, value any) error {
		raw, err := json.Marshal(value)
		m := message{}
		m.ID, m.Aux = id, (*json.RawMessage)(&raw)
		if err == nil {
			p.send(m)
		}
		return err
	}
	quiet := r.query.flag("q")
	req.Status = func(st build.Status) {
		if quiet {
			return
		}
		all, err := s.BuildKit.Trace(st)
		for _, raw := range all {
			if err == nil {
				err = aux("moby.buildkit.trace", raw)
			}
		}
		if err != nil {
			s.Logger.Warn("tell a client of its build", "err", err)
		}
	}
	resp, err := s.Builds.Build(ctx, req)
	if err != nil {
		return p.finish(err)
	}
	if id := resp.Exporter["containerimage.config.digest"]; id != "" && quiet {
		p.say(id + "\n")
	} else if id != "" {
		err = aux("moby.image.id", wirebuild.Result{ID: id})
	}
	return p.finish(err)
}

// sessionRequest reads the query; what the client has, its session gives.
func (s *Server) sessionRequest(ctx context.Context, r *request) (builds.Request, error) {
	req, err := s.classicRequest(r)
	if err != nil {
		return req, err
	}
	req.Session = &build.Session{}
	if id := r.query.get("session"); id != "" {
		if req.Session, err = s.BuildKit.BuildSession(ctx, id); err != nil {
			return req, err
		}
	}
	switch id := r.query.get("buildid"); r.query.get("remote") {
	case "":
		return req, errs.New(errs.Invalid, "a build of version 2 takes its context from a session (remote=%s), another request (remote=%s) or an address, not from its own body", clientSession, uploadRequest)
	case uploadRequest:
		if id == "" {
			return req, errs.New(errs.Invalid, "remote=%s needs a build id", uploadRequest)
		}
		req.FrontendAttrs["context"] = "http://buildkit-session/" + id
		req.Session.Uploads = &s.uploads
	}
	var outputs []struct {
		Type  string
		Attrs map[string]string
	}
	if text := r.query.get("outputs"); text != "" {
		if err := json.Unmarshal([]byte(text), &outputs); err != nil {
			return req, errs.New(errs.Invalid, "invalid outputs: %w", err)
		}
	}
	image := req.Exports
	for i, out := range outputs {
		if i == 0 {
			req.Exports = nil
		}
		export := builds.Export{Type: out.Type, Attrs: out.Attrs, ID: strconv.Itoa(i)}
		if export.Attrs == nil {
			export.Attrs = map[string]string{}
		}
		if name := image[0].Attrs["name"]; name != "" && export.Attrs["name"] == "" && (out.Type == "image" || out.Type == "docker" || out.Type == "oci") {
			export.Attrs["name"] = name
		}
		req.Exports = append(req.Exports, export)
	}
	return req, nil
}

// handIn gives the body of a request to the build that waits for it, and returns when it was read.
func (s *Server) handIn(r *request, id string) error {
	ctx, cancel := context.WithTimeout(r.Context(), uploadWait)
	defer cancel()
	defer s.uploads.drop("/" + id)
	up := s.uploads.of("/" + id)
	read := make(chan struct{})
	select {
	case up <- &handedIn{Reader: r.Body, done: sync.OnceFunc(func() { close(read) })}:
	case <-ctx.Done():
		return errs.New(errs.NotFound, "no build %s waits for its context", id)
	}
	select {
	case <-read:
	case <-r.Context().Done():
	case <-s.streams.Done():
	}
	return nil
}

// handedIn is the body of one request that another one reads.
type handedIn struct {
	io.Reader
	done func()
}

// Close tells that nothing is read any more: the body is the server's again.
func (h *handedIn) Close() error {
	h.done()
	return nil
}

// handIns are where the two requests of a build meet.
type handIns struct {
	mu  sync.Mutex
	all map[string]chan io.ReadCloser
}

func (u *handIns) of(path string) chan io.ReadCloser {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.all == nil {
		u.all = map[string]chan io.ReadCloser{}
	}
	c := u.all[path]
	if c == nil {
		c = make(chan io.ReadCloser)
		u.all[path] = c
	}
	return c
}

func (u *handIns) drop(path string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.all, path)
}

// Upload implements [build.Uploads].
func (u *handIns) Upload(ctx context.Context, path string) (io.ReadCloser, error) {
	ctx, cancel := context.WithTimeout(ctx, uploadWait)
	defer cancel()
	defer u.drop(path)
	select {
	case body := <-u.of(path):
		return body, nil
	case <-ctx.Done():
		return nil, errs.New(errs.NotFound, "the client has not sent the context of build %s", strings.TrimPrefix(path, "/"))
	}
}
