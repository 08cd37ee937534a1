package server

import (
	"compress/gzip"
	"errors"
	"io"
	"net/http"
	"strings"

	"github.com/klauspost/compress/zstd"

	"corten.dev/corten/internal/compressed"
	"corten.dev/corten/internal/engine/volumes"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/volume"
)

// Copies of volumes. Docker's API has nothing of the kind; these requests are ours:
//
//	POST   /volumes/{name}/snapshots      {"Name": "…"}                     201 {"Name", "Created"}   the name may be empty
//	GET    /volumes/{name}/snapshots                                        200 [{"Name", "Created"}]
//	DELETE /volumes/{name}/snapshots/{s}                                    204
//	POST   /volumes/{name}/restore        {"Snapshot": "…"}                 204   no running container may have the volume
//	POST   /volumes/{name}/clone          {"Name", "Snapshot", "Labels"}    201 a volume, as create answers
//	POST   /volumes/{name}/rename         {"Name": "…"}                     200 a volume, as inspect answers
//	GET    /volumes/{name}/export?snapshot=&compression=gzip|zstd           200 application/x-tar
//	POST   /volumes/{name}/import?label=k=v&opt=size=1g                     201 a volume; the body is a tar archive, plain or compressed
//
// Those that copy what a volume holds now take live=1: containers that write to it are not held meanwhile.

type copyBody struct {
	Name, Snapshot string
	Labels         map[string]string
}

func copySource(r *request, snapshot string) volumes.Source {
	return volumes.Source{Volume: r.id(), Snapshot: snapshot, Live: r.query.flag("live")}
}

func (s *Server) volumeSnapshot(w http.ResponseWriter, r *request) error {
	var body copyBody
	if err := readJSON(r.Request, &body); err != nil {
		return err
	}
	snap, err := s.Volumes.Snapshot(r.steady(), copySource(r, ""), body.Name)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusCreated, snap)
}

func (s *Server) volumeSnapshots(w http.ResponseWriter, r *request) error {
	list, err := s.Volumes.Snapshots(r.Context(), r.id())
	if err != nil {
		return err
	}
	return ok(w, orEmpty(list))
}

func (s *Server) volumeSnapshotRemove(w http.ResponseWriter, r *request) error {
	if err := s.Volumes.RemoveSnapshot(r.steady(), r.id(), r.vars[1]); err != nil {
		return err
	}
	return noContent(w)
}

func (s *Server) volumeRestore(w http.ResponseWriter, r *request) error {
	var body copyBody
	if err := readJSON(r.Request, &body); err != nil {
		return err
	}
	if body.Snapshot == "" {
		return errs.New(errs.Invalid, "restore %s: no snapshot is named", r.id())
	}
	if err := s.Volumes.Restore(r.steady(), r.id(), body.Snapshot); err != nil {
		return err
	}
	return noContent(w)
}

func (s *Server) volumeClone(w http.ResponseWriter, r *request) error {
	var body copyBody
	if err := readJSON(r.Request, &body); err != nil {
		return err
	}
	// Who goes away has changed their mind about what may take hours: nothing stays of it.
	vol, err := s.Volumes.Clone(r.Context(), copySource(r, body.Snapshot), volume.CreateOptions{Name: body.Name, Labels: body.Labels})
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusCreated, fromVolume(vol))
}

func (s *Server) volumeRename(w http.ResponseWriter, r *request) error {
	var body copyBody
	if err := readJSON(r.Request, &body); err != nil {
		return err
	}
	vol, err := s.Volumes.Rename(r.steady(), r.id(), body.Name)
	if err != nil {
		return err
	}
	return ok(w, fromVolume(vol))
}

func (s *Server) volumeExport(w http.ResponseWriter, r *request) error {
	out := &lazyStream{w: w, contentType: "application/x-tar"}
	z, err := compressor(out, r.query.get("compression"))
	if err != nil {
		return err
	}
	err = s.Volumes.Export(r.Context(), copySource(r, r.query.get("snapshot")), z)
	if err == nil {
		err = z.Close()
	}
	return out.finish(err)
}

// compressor writes what it is given compressed. Nothing is written before there is something to write.
func compressor(w io.Writer, kind string) (io.WriteCloser, error) {
	switch kind {
	case "", "none":
		return nopCloser{w}, nil
	case "gzip":
		return gzip.NewWriterLevel(w, gzip.BestSpeed)
	case "zstd":
		return zstd.NewWriter(w, zstd.WithEncoderConcurrency(1))
	}
	return nil, errs.New(errs.Invalid, "unknown compression %q: want none, gzip or zstd", kind)
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

func (s *Server) volumeImport(w http.ResponseWriter, r *request) error {
	body, err := compressed.Reader(r.Context(), r.Body)
	if err != nil {
		return err
	}
	defer body.Close()
	opts := volume.CreateOptions{Name: r.id()}
	if opts.Labels, err = pairs(r.query["label"]); err != nil {
		return err
	}
	if opts.Options, err = pairs(r.query["opt"]); err != nil {
		return err
	}
	vol, err := s.Volumes.Import(r.Context(), opts, body)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		err = errs.As(errs.Invalid, err)
	}
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusCreated, fromVolume(vol))
}

// pairs reads k=v texts.
func pairs(list []string) (map[string]string, error) {
	if len(list) == 0 {
		return nil, nil
	}
	out := make(map[string]string, len(list))
	for _, kv := range list {
		key, val, _ := strings.Cut(kv, "=")
		if key == "" {
			return nil, errs.New(errs.Invalid, "%q has no name", kv)
		}
		out[key] = val
	}
	return out, nil
}
