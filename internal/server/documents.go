package server

import (
	"io"
	"net/http"
	"strconv"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/manifest"
)

// documentRoutes give manifests at registries to clients that have no word for them in Docker's API, because docker's client asks registries itself.
func (s *Server) documentRoutes() []entry {
	return []entry{
		{"GET /corten/manifests/**", s.documentGet},
		{"PUT /corten/manifests/**", s.documentPut},
		{"GET /corten/blobs/**", s.remoteBlob},
	}
}

// documentGet answers with the document as the registry has it, byte for byte.
func (s *Server) documentGet(w http.ResponseWriter, r *request) error {
	creds, err := s.credentials(r)
	if err != nil {
		return err
	}
	doc, err := s.Documents.Document(r.Context(), r.id(), creds)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", doc.MediaType)
	w.Header().Set("Docker-Content-Digest", doc.Digest.String())
	_, err = w.Write(doc.Raw)
	return err
}

// documentPut stores the body; each from=repository@digest names where a listed manifest is now.
func (s *Server) documentPut(w http.ResponseWriter, r *request) error {
	creds, err := s.credentials(r)
	if err != nil {
		return err
	}
	raw, err := io.ReadAll(io.LimitReader(r.Body, manifest.MaxSize+1))
	if err != nil {
		return errs.New(errs.Invalid, "read manifest: %w", err)
	}
	doc, err := manifest.Parse(r.Header.Get("Content-Type"), raw)
	if err != nil {
		return err
	}
	if err := s.Documents.PutDocument(r.Context(), r.id(), doc, r.query["from"], creds); err != nil {
		return err
	}
	w.Header().Set("Docker-Content-Digest", doc.Digest.String())
	w.WriteHeader(http.StatusCreated)
	return nil
}

func (s *Server) remoteBlob(w http.ResponseWriter, r *request) error {
	creds, err := s.credentials(r)
	if err != nil {
		return err
	}
	size, err := strconv.ParseInt(r.query.get("size"), 10, 64)
	if err != nil {
		return errs.New(errs.Invalid, "size %q is not a number of bytes", r.query.get("size"))
	}
	raw, err := s.Documents.RemoteBlob(r.Context(), r.id(), size, creds)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	_, err = w.Write(raw)
	return err
}
