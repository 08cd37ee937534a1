package server

import (
	"errors"
	"net/http"
	"time"

	wire "github.com/moby/moby/api/types/volume"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/server/parse"
	"corten.dev/corten/internal/volume"
)

func (s *Server) volumeRoutes() []entry {
	return []entry{
		{"GET /volumes", s.volumesList},
		{"POST /volumes/create", s.volumeCreate},
		{"POST /volumes/prune", s.volumesPrune},
		{"POST /volumes/*/snapshots", s.volumeSnapshot},
		{"GET /volumes/*/snapshots", s.volumeSnapshots},
		{"DELETE /volumes/*/snapshots/*", s.volumeSnapshotRemove},
		{"POST /volumes/*/restore", s.volumeRestore},
		{"POST /volumes/*/clone", s.volumeClone},
		{"POST /volumes/*/rename", s.volumeRename},
		{"GET /volumes/*/export", s.volumeExport},
		{"POST /volumes/*/import", s.volumeImport},
		{"GET /volumes/**", s.volumeInspect},
		{"PUT /volumes/**", notSwarm},
		{"DELETE /volumes/**", s.volumeRemove},
	}
}

func fromVolume(vol volume.Volume) wire.Volume {
	out := wire.Volume{Name: vol.Name, Driver: vol.Driver, Mountpoint: vol.Mountpoint, Labels: vol.Labels, Options: vol.Options, Scope: vol.Scope, Status: vol.Status}
	if out.Scope == "" {
		out.Scope = "local"
	}
	if !vol.Created.IsZero() {
		out.CreatedAt = vol.Created.Format(time.RFC3339)
	}
	return out
}

func (s *Server) volumesList(w http.ResponseWriter, r *request) error {
	filters, err := r.query.filters()
	if err != nil {
		return err
	}
	list, warnings, err := s.Volumes.List(r.Context(), filters)
	if err != nil {
		return err
	}
	out := wire.ListResponse{Volumes: make([]wire.Volume, len(list)), Warnings: warnings}
	for i, vol := range list {
		out.Volumes[i] = fromVolume(vol)
	}
	return ok(w, out)
}

func (s *Server) volumeCreate(w http.ResponseWriter, r *request) error {
	var body wire.CreateRequest
	if err := readJSON(r.Request, &body); err != nil {
		return err
	}
	if body.ClusterVolumeSpec != nil {
		return notSwarm(w, r)
	}
	if body.Name != "" && (body.Driver == "" || body.Driver == volume.LocalDriver) { // plugins have rules of their own
		if err := parse.VolumeName(body.Name); err != nil {
			return err
		}
	}
	vol, err := s.Volumes.Create(r.steady(), volume.CreateOptions{Name: body.Name, Driver: body.Driver, Labels: body.Labels, Options: body.DriverOpts})
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusCreated, fromVolume(vol))
}

func (s *Server) volumesPrune(w http.ResponseWriter, r *request) error {
	filters, err := r.query.filters()
	if err != nil {
		return err
	}
	if r.version < 42 { // named volumes were pruned too
		if filters == nil {
			filters = map[string][]string{}
		}
		if _, given := filters["all"]; given {
			return errs.New(errs.Invalid, "invalid filter 'all'")
		}
		filters["all"] = []string{"true"}
	}
	pruned, err := s.Volumes.Prune(r.steady(), filters)
	if err != nil {
		return err
	}
	return ok(w, wire.PruneReport{VolumesDeleted: orEmpty(pruned.Deleted), SpaceReclaimed: uint64(max(pruned.Space, 0))})
}

func (s *Server) volumeInspect(w http.ResponseWriter, r *request) error {
	vol, err := s.Volumes.Inspect(r.Context(), r.id())
	if err != nil {
		return err
	}
	return ok(w, fromVolume(vol))
}

func (s *Server) volumeRemove(w http.ResponseWriter, r *request) error {
	force := r.query.flag("force")
	err := s.Volumes.Remove(r.steady(), r.id(), force)
	if err != nil && !(force && errors.Is(err, errs.NotFound)) {
		return err
	}
	return noContent(w)
}
