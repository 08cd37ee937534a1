package server

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"time"

	"github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/solver/pb"
	spb "github.com/moby/buildkit/sourcepolicy/pb"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/buildwire"
	"corten.dev/corten/internal/engine/builds"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/task"
)

// goodbye is how long a client has to read the end of its build.
const goodbye = 10 * time.Second

// cortenRoutes are our own client's door for builds; its conversation is drawn in package buildwire.
func (s *Server) cortenRoutes() []entry {
	list := []entry{
		{"POST " + buildwire.Path, s.cortenBuild},
		{"GET " + buildwire.UsagePath, s.cortenUsage},
		{"POST " + buildwire.PrunePath, s.cortenPrune},
		{"GET " + buildwire.HistoryPath, s.cortenHistory},
		{"GET " + buildwire.StatusPath, s.cortenStatus},
		{"GET " + buildwire.ArchivePath, s.cortenArchive},
		{"POST " + buildwire.BakePath, s.cortenBake},
		{"POST " + buildwire.FetchPath, s.cortenFetch},
		{"GET " + buildwire.AboutPath, s.cortenAbout},
		{"DELETE " + buildwire.HistoryPath, s.cortenForget},
	}
	if s.Builds != nil {
		return list
	}
	for i := range list {
		list[i].handle = absent("this engine was started without the service for builds")
	}
	return list
}

// cortenBuild runs one build for as long as its connection lasts.
func (s *Server) cortenBuild(w http.ResponseWriter, r *request) error {
	var asked buildwire.Request
	if err := readJSON(r.Request, &asked); err != nil {
		return err
	}
	req, err := buildRequest(&asked)
	if err != nil {
		return err
	}
	h := &hijack{w: w, r: r}
	nc, preread, err := h.take(true)
	if err != nil {
		return err
	}
	door := buildwire.NewDoor(newBuildCarrier(nc, preread))
	defer door.Close()
	ctx, cancel := context.WithCancel(context.WithoutCancel(r.Context()))
	defer cancel()
	defer context.AfterFunc(s.streams, cancel)()
	go func() {
		defer cancel()
		defer task.Contain(s.Logger, "connection of a build", nil)
		_ = door.Run() // it ends when the client has gone, whatever the reason
	}()
	session := newBuildSession(door, &asked, s.BuildMirrors)
	defer session.end()
	req.Session = session.offer()
	req.Status = func(st build.Status) {
		if err := sendStatus(door, st); err != nil {
			cancel()
		}
	}
	if asked.Shell {
		req.OnError = session.shell
	}
	if len(asked.Links) > 0 {
		req.Gateway = linked(&asked)
	}
	resp, err := s.Builds.Build(ctx, req)
	session.end()
	if s.streams.Err() != nil && err != nil {
		err = errs.New(errs.Unavailable, "the engine is stopping")
	}
	if err := sayLast(door, resp, err); err != nil {
		s.Logger.Debug("build: the client left", "ref", asked.Ref, "err", err)
		return nil
	}
	select { // closing now could throw away what the client has not read
	case <-door.Done():
	case <-time.After(goodbye):
	}
	return nil
}

func sayLast(door *buildwire.Conn, resp builds.Response, err error) error {
	if err == nil {
		data, merr := json.Marshal(buildwire.Response{Exporter: resp.Exporter})
		if merr == nil && len(data) <= buildwire.MaxFrame {
			return door.Send(buildwire.Result, data)
		}
		err = errors.Join(merr, errs.New(errs.Invalid, "what the build answered is too large"))
	}
	data, merr := json.Marshal(buildError(err))
	if merr != nil {
		return merr
	}
	return door.Send(buildwire.Failure, data)
}

// buildError adds to the text what a client can show: the lines of the Dockerfile, the exit code.
func buildError(err error) *buildwire.Error {
	out := buildwire.ErrorOf(err)
	out = &buildwire.Error{Kind: out.Kind, Message: out.Message, Canceled: errors.Is(err, context.Canceled)}
	var step *build.StepError
	if errors.As(err, &step) {
		out.ExitCode = step.ExitCode
	}
	out.Sources = errorSources(err)
	return out
}

// maxSource bounds the text of a source that travels with an error.
const maxSource = 256 << 10

func errorSources(err error) (list []buildwire.Source) {
	for _, src := range errdefs.Sources(err) {
		if src.Info == nil || len(src.Info.Data) > maxSource {
			continue
		}
		list = append(list, buildwire.Source{Filename: src.Info.Filename, Language: src.Info.Language, Data: src.Info.Data, Ranges: wireRanges(src.Ranges)})
	}
	return list
}

func wireRanges(list []*pb.Range) (out []buildwire.Range) {
	for _, r := range list {
		if r == nil || r.Start == nil {
			continue
		}
		to := r.End
		if to == nil {
			to = r.Start
		}
		out = append(out, buildwire.Range{Start: buildwire.Position{Line: int(r.Start.Line), Character: int(r.Start.Character)},
			End: buildwire.Position{Line: int(to.Line), Character: int(to.Character)}})
	}
	return out
}

// buildRequest converts what the client asks for into the service's words.
func buildRequest(asked *buildwire.Request) (builds.Request, error) {
	req := builds.Request{Ref: asked.Ref, Frontend: asked.Frontend, FrontendAttrs: asked.Attrs, Entitlements: asked.Entitlements, Provenance: asked.Provenance}
	if req.Frontend == "" {
		return req, errs.New(errs.Invalid, "the build names no frontend")
	}
	for _, e := range asked.Exports {
		req.Exports = append(req.Exports, builds.Export{Type: e.Type, Attrs: e.Attrs, ID: e.ID})
	}
	for _, c := range asked.CacheFrom {
		req.CacheImports = append(req.CacheImports, builds.CacheOption{Type: c.Type, Attrs: c.Attrs})
	}
	for _, c := range asked.CacheTo {
		req.CacheExports = append(req.CacheExports, builds.CacheOption{Type: c.Type, Attrs: c.Attrs})
	}
	if len(asked.Policy) > 0 {
		req.SourcePolicy = &spb.Policy{}
		if err := json.Unmarshal(asked.Policy, req.SourcePolicy); err != nil {
			return req, errs.New(errs.Invalid, "read the source policy: %w", err)
		}
	}
	return req, nil
}

// Bounds of one frame of status: more is sent in several.
const (
	statusLogs     = 256 << 10
	statusVertexes = 512
)

// sendStatus tells the client what happened, in frames that fit.
func sendStatus(door *buildwire.Conn, st build.Status) error {
	size := 0
	for _, l := range st.Logs {
		size += len(l.Data)
	}
	if size <= statusLogs && len(st.Vertexes) <= statusVertexes && len(st.Parts) <= statusVertexes && len(st.Warnings) <= statusVertexes {
		return sendFrame(door, st)
	}
	for part := range slices.Chunk(st.Vertexes, statusVertexes) {
		if err := sendFrame(door, build.Status{Vertexes: part}); err != nil {
			return err
		}
	}
	for part := range slices.Chunk(st.Parts, statusVertexes) {
		if err := sendFrame(door, build.Status{Parts: part}); err != nil {
			return err
		}
	}
	for part := range slices.Chunk(st.Warnings, statusVertexes) {
		if err := sendFrame(door, build.Status{Warnings: part}); err != nil {
			return err
		}
	}
	for _, l := range st.Logs {
		for part := range slices.Chunk(l.Data, statusLogs) {
			l.Data = part
			if err := sendFrame(door, build.Status{Logs: []build.LogStatus{l}}); err != nil {
				return err
			}
		}
	}
	return nil
}

func sendFrame(door *buildwire.Conn, st build.Status) error {
	data, err := json.Marshal(st)
	if err != nil {
		return err
	}
	return door.Send(buildwire.Status, data)
}
