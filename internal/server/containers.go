package server

import (
	"net/http"
	"reflect"
	"strings"
	"time"

	wire "github.com/moby/moby/api/types/container"
	wirenet "github.com/moby/moby/api/types/network"

	"corten.dev/corten/internal/container"
	"corten.dev/corten/internal/engine/containers"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/filter"
	"corten.dev/corten/internal/server/parse"
)

func (s *Server) containerRoutes() []entry {
	return []entry{
		{"GET /containers/json", s.containersList},
		{"POST /containers/create", s.containerCreate},
		{"POST /containers/prune", s.containersPrune},
		{"GET /containers/*/json", s.containerInspect},
		{"GET /containers/*/top", s.containerTop},
		{"GET /containers/*/logs", s.containerLogs},
		{"GET /containers/*/changes", s.containerChanges},
		{"GET /containers/*/export", s.containerExport},
		{"GET /containers/*/stats", s.containerStats},
		{"GET /containers/*/attach/ws", s.containerAttachWS},
		{"HEAD /containers/*/archive", s.archiveStat},
		{"GET /containers/*/archive", s.archiveGet},
		{"PUT /containers/*/archive", s.archivePut},
		{"POST /containers/*/start", s.containerStart},
		{"POST /containers/*/stop", s.containerStop},
		{"POST /containers/*/restart", s.containerRestart},
		{"POST /containers/*/kill", s.containerKill},
		{"POST /containers/*/pause", s.containerPause},
		{"POST /containers/*/unpause", s.containerUnpause},
		{"POST /containers/*/wait", s.containerWait},
		{"POST /containers/*/resize", s.containerResize},
		{"POST /containers/*/attach", s.containerAttach},
		{"POST /containers/*/rename", s.containerRename},
		{"POST /containers/*/update", s.containerUpdate},
		{"POST /containers/*/edit", s.containerEdit},
		{"POST /containers/*/upgrade", s.containerUpgrade},
		{"POST /containers/*/exec", s.execCreate},
		{"DELETE /containers/**", s.containerRemove}, // name/alias names a link
		{"POST /exec/*/start", s.execStart},
		{"POST /exec/*/resize", s.execResize},
		{"GET /exec/*/json", s.execInspect},
		{"POST /commit", s.commit},
	}
}

func (s *Server) containersList(w http.ResponseWriter, r *request) error {
	filters, err := r.query.filters()
	if err != nil {
		return err
	}
	limit, err := r.query.number("limit")
	if err != nil {
		return err
	}
	for _, old := range []string{"since", "before"} {
		if v := r.query.get(old); v != "" {
			if filters == nil {
				filters = filter.Args{}
			}
			filters[old] = append(filters[old], v)
		}
	}
	brief := r.query.flag("brief") && !r.query.flag("size")
	views, err := s.Containers.List(r.Context(), containers.ListOptions{
		All: r.query.flag("all"), Limit: limit, Size: r.query.flag("size"), Filters: filters, Brief: brief,
	})
	if err != nil {
		return err
	}
	if brief {
		return ok(w, briefly(views, time.Now()))
	}
	out := make([]wire.Summary, len(views))
	now := time.Now()
	for i := range views {
		out[i] = summary(views[i], r.version, now)
	}
	return ok(w, out)
}

// createBody is the body of create.
type createBody struct {
	configBody
	HostConfig       *hostBody
	NetworkingConfig *wirenet.NetworkingConfig
}

func (s *Server) containerCreate(w http.ResponseWriter, r *request) error {
	var body createBody
	if err := readAddressed[createText](r.Request, &body); err != nil {
		return err
	}
	req, warnings, err := s.toCreate(body, r.version)
	if err != nil {
		return err
	}
	req.Name = strings.TrimPrefix(r.query.get("name"), "/")
	if req.Name != "" && !parse.Name(req.Name) {
		return errs.New(errs.Invalid, "Invalid container name (%s), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed", req.Name)
	}
	if r.version >= 41 {
		req.Platform = r.query.get("platform")
	}
	created, err := s.Containers.Create(r.steady(), req)
	if err != nil {
		return err
	}
	made := wire.CreateResponse{ID: created.ID, Warnings: append(orEmpty(warnings), created.Warnings...)}
	if runs(r, &req) {
		return s.containerRun(w, r, made)
	}
	return writeJSON(w, http.StatusCreated, made)
}

// toCreate converts the body of create.
func (s *Server) toCreate(body createBody, version int) (containers.CreateRequest, []string, error) {
	var req containers.CreateRequest
	if reflect.ValueOf(body.configBody).IsZero() {
		return req, nil, errs.New(errs.Invalid, "config cannot be empty in order to create a container")
	}
	var err error
	if req.Config, err = toConfig(body.configBody, version); err != nil {
		return req, nil, err
	}
	if body.HostConfig == nil {
		body.HostConfig = &hostBody{}
	}
	var warnings []string
	if req.Host, warnings, err = s.toHost(*body.HostConfig, version); err != nil {
		return req, nil, err
	}
	req.Networks, err = toNetworks(body.NetworkingConfig, req.Host.NetworkMode, body.MacAddress, version)
	return req, warnings, err
}

func (s *Server) containersPrune(w http.ResponseWriter, r *request) error {
	filters, err := r.query.filters()
	if err != nil {
		return err
	}
	pruned, err := s.Containers.Prune(r.steady(), filters)
	if err != nil {
		return err
	}
	return ok(w, wire.PruneReport{ContainersDeleted: pruned.Deleted, SpaceReclaimed: uint64(max(pruned.Space, 0))})
}

func (s *Server) containerInspect(w http.ResponseWriter, r *request) error {
	view, err := s.Containers.Inspect(r.Context(), r.id(), r.query.flag("size"))
	if err != nil {
		return err
	}
	return ok(w, inspection(view, r.version))
}

func (s *Server) containerTop(w http.ResponseWriter, r *request) error {
	args := strings.Fields(r.query.get("ps_args"))
	if len(args) == 0 {
		args = []string{"-ef"}
	}
	titles, rows, err := s.Containers.Top(r.Context(), r.id(), args)
	if err != nil {
		return err
	}
	return ok(w, wire.TopResponse{Titles: titles, Processes: orEmpty(rows)})
}

func (s *Server) containerChanges(w http.ResponseWriter, r *request) error {
	changes, err := s.Containers.Changes(r.Context(), r.id())
	if err != nil {
		return err
	}
	var out []wire.FilesystemChange
	for _, c := range changes {
		out = append(out, wire.FilesystemChange{Kind: wire.ChangeType(c.Kind), Path: c.Path})
	}
	return ok(w, out)
}

func (s *Server) containerStart(w http.ResponseWriter, r *request) error {
	// Clients in the wild send "null\n" or "{}"; anything longer, or of unknown length, is a configuration that would be passed over.
	if r.ContentLength > 7 || r.ContentLength == -1 {
		return errs.New(errs.Invalid, "starting container with non-empty request body was deprecated since API v1.22 and removed in v1.24")
	}
	if r.query.get("checkpoint") != "" {
		return errs.New(errs.NotImplemented, "starting from a checkpoint is not part of this version")
	}
	if err := s.Containers.Start(r.steady(), r.id(), r.query.get("detachKeys")); err != nil {
		return err
	}
	return noContent(w)
}

func stopOptions(r *request) (containers.StopOptions, error) {
	var opts containers.StopOptions
	if r.version >= 42 {
		opts.Signal = r.query.get("signal")
	}
	if r.query.get("t") != "" {
		seconds, err := r.query.number("t")
		if err != nil {
			return opts, err
		}
		opts.Timeout = &seconds
	}
	return opts, nil
}

func (s *Server) containerStop(w http.ResponseWriter, r *request) error {
	opts, err := stopOptions(r)
	if err != nil {
		return err
	}
	if err := s.Containers.Stop(r.steady(), r.id(), opts); err != nil {
		return err
	}
	return noContent(w)
}

func (s *Server) containerRestart(w http.ResponseWriter, r *request) error {
	opts, err := stopOptions(r)
	if err != nil {
		return err
	}
	if err := s.Containers.Restart(r.steady(), r.id(), opts); err != nil {
		return err
	}
	return noContent(w)
}

func (s *Server) containerKill(w http.ResponseWriter, r *request) error {
	signal := r.query.get("signal")
	if signal == "" {
		signal = "KILL"
	}
	if err := s.Containers.Kill(r.steady(), r.id(), signal); err != nil {
		return err
	}
	return noContent(w)
}

func (s *Server) containerPause(w http.ResponseWriter, r *request) error {
	if err := s.Containers.Pause(r.steady(), r.id()); err != nil {
		return err
	}
	return noContent(w)
}

func (s *Server) containerUnpause(w http.ResponseWriter, r *request) error {
	if err := s.Containers.Unpause(r.steady(), r.id()); err != nil {
		return err
	}
	return noContent(w)
}

func (s *Server) containerRename(w http.ResponseWriter, r *request) error {
	name := strings.TrimPrefix(r.query.get("name"), "/")
	if name == "" {
		return errs.New(errs.Invalid, "Neither old nor new names may be empty")
	}
	if err := s.Containers.Rename(r.steady(), r.id(), name); err != nil {
		return err
	}
	return noContent(w)
}

func (s *Server) containerRemove(w http.ResponseWriter, r *request) error {
	opts := containers.RemoveOptions{Volumes: r.query.flag("v"), Link: r.query.flag("link"), Force: r.query.flag("force")}
	if err := s.Containers.Remove(r.steady(), r.id(), opts); err != nil {
		return err
	}
	return noContent(w)
}

func (s *Server) containerResize(w http.ResponseWriter, r *request) error {
	h, width, err := size(r)
	if err != nil {
		return err
	}
	if err := s.Containers.Resize(r.Context(), r.id(), h, width); err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

// size reads h and w of the resize endpoints.
func size(r *request) (height, width uint, err error) {
	for _, side := range []struct {
		key, name string
		to        *uint
	}{{"h", "height", &height}, {"w", "width", &width}} {
		n, err := r.query.number(side.key)
		if err != nil || n < 0 || n > 65535 || r.query.get(side.key) == "" {
			return 0, 0, errs.New(errs.Invalid, "invalid resize %s %q: must be a number from 0 to 65535", side.name, r.query.get(side.key))
		}
		*side.to = uint(n)
	}
	return height, width, nil
}

// updateBody is the body of update, with what older versions had besides.
type updateBody struct {
	wire.Resources
	RestartPolicy wire.RestartPolicy
	KernelMemory  int64
}

func (s *Server) containerUpdate(w http.ResponseWriter, r *request) error {
	var body updateBody
	if err := readJSON(r.Request, &body); err != nil {
		return err
	}
	req, err := toUpdate(body, r.version)
	if err != nil {
		return err
	}
	warnings, err := s.Containers.Update(r.steady(), r.id(), req)
	if err != nil {
		return err
	}
	return ok(w, wire.UpdateResponse{Warnings: warnings})
}

func toUpdate(body updateBody, version int) (containers.UpdateRequest, error) {
	var req containers.UpdateRequest
	if p := body.PidsLimit; version < 40 && p != nil && *p <= 0 {
		body.PidsLimit = nil
	}
	if version < 55 { // they were in the schema before, and were passed over
		body.BlkioWeightDevice, body.BlkioDeviceReadBps, body.BlkioDeviceWriteBps = nil, nil, nil
		body.BlkioDeviceReadIOps, body.BlkioDeviceWriteIOps = nil, nil
	}
	res, err := toResources(body.Resources)
	if err != nil {
		return req, err
	}
	if version < 42 {
		res.KernelMemory = body.KernelMemory
	}
	req.Resources = &res
	if body.RestartPolicy.Name != "" {
		req.Restart = &container.RestartPolicy{Name: string(body.RestartPolicy.Name), MaxRetries: body.RestartPolicy.MaximumRetryCount}
	}
	return req, nil
}

func (s *Server) commit(w http.ResponseWriter, r *request) error {
	var body *configBody
	if _, err := readOptionalJSON(r.Request, &body); err != nil {
		return err
	}
	ref := r.query.get("container")
	if ref == "" {
		return errs.New(errs.Invalid, "invalid container name: it is empty")
	}
	req := containers.CommitRequest{
		Container: ref, Ref: imageName(r.query.get("repo"), r.query.get("tag")),
		Author: r.query.get("author"), Comment: r.query.get("comment"),
		Changes: r.query["changes"], Pause: r.query.flagOr("pause", true),
	}
	// Some clients send an empty object when they mean nothing.
	if body != nil && !reflect.ValueOf(*body).IsZero() {
		cfg, err := toConfig(*body, r.version)
		if err != nil {
			return err
		}
		req.Config = &cfg
	}
	id, err := s.Containers.Commit(r.steady(), req)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusCreated, wire.CommitResponse{ID: id})
}
