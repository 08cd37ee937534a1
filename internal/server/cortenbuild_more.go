package server

import (
	"encoding/json"
	"net/http"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/build/frontend"
	"corten.dev/corten/internal/buildwire"
	"corten.dev/corten/internal/engine/builds"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/filter"
	"corten.dev/corten/internal/version"
)

// cortenUsage lists what the cache of builds holds.
func (s *Server) cortenUsage(w http.ResponseWriter, r *request) error {
	args, err := r.query.filters()
	if err != nil {
		return err
	}
	list, err := s.Builds.DiskUsage(r.Context(), args)
	if err != nil {
		return err
	}
	out := make([]buildwire.Usage, 0, len(list))
	for i := range list {
		out = append(out, recordView(&list[i]))
	}
	return ok(w, out)
}

func recordView(u *builds.UsageRecord) buildwire.Usage {
	return buildwire.Usage{ID: u.ID, Parents: u.Parents, Kind: u.Kind, Description: u.Description, Size: u.Size, InUse: u.InUse, Shared: u.Shared, Mutable: u.Mutable,
		Created: u.Created, LastUsed: u.LastUsed, UsageCount: u.UsageCount}
}

// cortenPrune tells each record as it goes, and the sum at the end. A client that leaves stops it.
func (s *Server) cortenPrune(w http.ResponseWriter, r *request) error {
	var asked buildwire.Prune
	if err := readJSON(r.Request, &asked); err != nil {
		return err
	}
	args, err := filterArgs(asked.Filters)
	if err != nil {
		return err
	}
	opts := builds.PruneOptions{All: asked.All, Filters: args, KeepDuration: asked.KeepDuration, Reserved: asked.Reserved, MaxUsed: asked.MaxUsed, MinFree: asked.MinFree}
	out := &lazyStream{w: w, contentType: "application/json"}
	enc := json.NewEncoder(out)
	space, err := s.Builds.Prune(r.Context(), opts, func(u builds.UsageRecord) {
		view := recordView(&u)
		_ = enc.Encode(buildwire.Pruned{Record: &view}) // a client that left is noticed by its context
	})
	if err != nil && out.st == nil {
		return err
	}
	last := buildwire.Pruned{Done: true, Space: space}
	if err != nil {
		last.Error = buildwire.ErrorOf(err)
	}
	_ = enc.Encode(last)
	return out.finish(nil)
}

// filterArgs reads filters in the form that queries have them.
func filterArgs(list map[string]map[string]bool) (filter.Args, error) {
	if len(list) == 0 {
		return filter.Args{}, nil
	}
	data, err := json.Marshal(list)
	if err != nil {
		return filter.Args{}, err
	}
	return filter.Parse(string(data))
}

// cortenHistory lists builds, a line each.
func (s *Server) cortenHistory(w http.ResponseWriter, r *request) error {
	ctx, cancel := s.endless(r)
	defer cancel()
	out := &lazyStream{w: w, contentType: "application/json"}
	enc := json.NewEncoder(out)
	err := s.Builds.History(ctx, r.query.flag("follow"), func(b builds.Build) error {
		view := buildwire.Build{Ref: b.Ref, Frontend: b.Frontend, Attrs: b.FrontendAttrs, Response: b.Response, Created: b.Created, Completed: b.Completed, Error: b.Error,
			Steps: b.Steps, Cached: b.Cached, Warnings: b.Warnings}
		for _, e := range b.Exports {
			view.Exports = append(view.Exports, buildwire.Export{Type: e.Type, Attrs: e.Attrs, ID: e.ID})
		}
		return enc.Encode(view)
	})
	if ctx.Err() != nil {
		err = nil
	}
	return out.finish(err)
}

// cortenStatus tells what happened in a build, from its beginning: a frame of status each line.
func (s *Server) cortenStatus(w http.ResponseWriter, r *request) error {
	ref := r.query.get("ref")
	if ref == "" {
		return errs.New(errs.Invalid, "which build is not said (ref)")
	}
	ctx, cancel := s.endless(r)
	defer cancel()
	out := &lazyStream{w: w, contentType: "application/json"}
	enc := json.NewEncoder(out)
	err := s.Builds.Status(ctx, ref, func(st build.Status) error { return enc.Encode(st) })
	if ctx.Err() != nil {
		err = nil
	}
	return out.finish(err)
}

// cortenArchive gives builds of the past as a file that Docker Desktop reads.
func (s *Server) cortenArchive(w http.ResponseWriter, r *request) error {
	refs := r.query["ref"]
	if len(refs) == 0 {
		return errs.New(errs.Invalid, "which build is not said (ref)")
	}
	if s.BuildKit == nil {
		return errs.New(errs.NotImplemented, "this engine was started without the service for builds")
	}
	out := &lazyStream{w: w, contentType: "application/gzip"}
	return out.finish(s.BuildKit.Archive(r.Context(), refs, out))
}

// cortenForget removes a build of the past.
func (s *Server) cortenForget(w http.ResponseWriter, r *request) error {
	ref := r.query.get("ref")
	if ref == "" {
		return errs.New(errs.Invalid, "which build is not said (ref)")
	}
	if err := s.Builds.Forget(r.Context(), ref); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// cortenAbout tells what the engine builds with and for.
func (s *Server) cortenAbout(w http.ResponseWriter, _ *request) error {
	return ok(w, buildwire.About{Version: version.Version, BuildKit: frontend.Version, Platforms: s.Builds.PlatformNames()})
}

// cortenBake answers the plan of bake files.
func (s *Server) cortenBake(w http.ResponseWriter, r *request) error {
	var asked buildwire.Bake
	if err := readJSON(r.Request, &asked); err != nil {
		return err
	}
	req := builds.BakeRequest{Targets: asked.Targets, Overrides: asked.Overrides, Env: asked.Env}
	for _, f := range asked.Files {
		req.Files = append(req.Files, builds.BakeFile(f))
	}
	plan, missing, err := s.Builds.Bake(r.Context(), req)
	if err != nil {
		return err
	}
	answer := buildwire.BakeAnswer{Plan: plan}
	for _, file := range missing {
		answer.Missing = append(answer.Missing, buildwire.BakeMissing(file))
	}
	return ok(w, answer)
}

// cortenFetch reads files at an address.
func (s *Server) cortenFetch(w http.ResponseWriter, r *request) error {
	var asked buildwire.Fetch
	if err := readJSON(r.Request, &asked); err != nil {
		return err
	}
	files, err := s.Builds.Fetch(r.Context(), builds.FetchRequest{Address: asked.Address, Names: asked.Names})
	if err != nil {
		return err
	}
	out := make([]buildwire.BakeFile, 0, len(files))
	for _, f := range files {
		out = append(out, buildwire.BakeFile(f))
	}
	return ok(w, out)
}
