package server

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"

	wire "github.com/moby/moby/api/types/container"

	"corten.dev/corten/internal/compressed"
	"corten.dev/corten/internal/engine/containers"
	"corten.dev/corten/internal/errs"
)

func archivePath(r *request) (string, error) {
	path := r.query.get("path")
	if path == "" {
		return "", errs.New(errs.Invalid, "missing path: query parameter 'path' is empty")
	}
	return path, nil
}

// setStat puts what is known of a path into the answer's header.
func setStat(w http.ResponseWriter, stat containers.PathStat) error {
	b, err := json.Marshal(wire.PathStat{
		Name: stat.Name, Size: stat.Size, Mode: os.FileMode(stat.Mode), Mtime: stat.Mtime, LinkTarget: stat.LinkTarget,
	})
	if err != nil {
		return err
	}
	w.Header().Set("X-Docker-Container-Path-Stat", base64.StdEncoding.EncodeToString(b))
	return nil
}

func (s *Server) archiveStat(w http.ResponseWriter, r *request) error {
	path, err := archivePath(r)
	if err != nil {
		return err
	}
	stat, err := s.Containers.StatPath(r.Context(), r.id(), path)
	if err != nil {
		return err
	}
	if err := setStat(w, stat); err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

func (s *Server) archiveGet(w http.ResponseWriter, r *request) error {
	path, err := archivePath(r)
	if err != nil {
		return err
	}
	out := &lazyStream{w: w, contentType: "application/x-tar"}
	var headerErr error
	err = s.Containers.ArchivePath(r.Context(), r.id(), path, func(stat containers.PathStat) io.Writer {
		headerErr = setStat(w, stat)
		return out
	})
	return out.finish(errors.Join(err, headerErr))
}

func (s *Server) archivePut(w http.ResponseWriter, r *request) error {
	path, err := archivePath(r)
	if err != nil {
		return err
	}
	body, err := compressed.Reader(r.Context(), r.Body)
	if err != nil {
		return err
	}
	defer body.Close()
	if err := s.Containers.ExtractTo(r.Context(), r.id(), path, body, r.query.flag("noOverwriteDirNonDir"), r.query.flag("copyUIDGID")); err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}
