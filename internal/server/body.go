package server

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"strconv"
	"sync"

	"corten.dev/corten/internal/errs"
)

// maxBody bounds the bodies that are read whole (JSON and forms).
const maxBody = 8 << 20

// checkJSON refuses a body that does not say that it is JSON. A request without a body needs to say nothing.
func checkJSON(r *http.Request) error {
	ct := r.Header.Get("Content-Type")
	if ct == "" && (r.Body == nil || r.ContentLength == 0) {
		return nil
	}
	if kind, _, err := mime.ParseMediaType(ct); err != nil {
		return errs.New(errs.Invalid, "malformed Content-Type header (%s): %w", ct, err)
	} else if kind != "application/json" {
		return errs.New(errs.Invalid, "unsupported Content-Type header (%s): must be 'application/json'", ct)
	}
	return nil
}

// readJSON reads the body into v: one JSON value and nothing after it.
func readJSON(r *http.Request, v any) error {
	if err := checkJSON(r); err != nil {
		return err
	}
	return decodeJSON(http.MaxBytesReader(nil, r.Body, maxBody), v)
}

func decodeJSON(body io.Reader, v any) error {
	dec := json.NewDecoder(body)
	if err := dec.Decode(v); err != nil {
		var tooLarge *http.MaxBytesError
		switch {
		case errors.As(err, &tooLarge):
			return err
		case errors.Is(err, io.EOF):
			return errs.New(errs.Invalid, "invalid JSON: got EOF while reading request body")
		}
		return errs.New(errs.Invalid, "invalid JSON: %w", err)
	}
	if dec.More() {
		return errs.New(errs.Invalid, "unexpected content after JSON")
	}
	return nil
}

// readOptionalJSON is readJSON for bodies that may be absent; it tells whether there was one.
func readOptionalJSON(r *http.Request, v any) (bool, error) {
	if err := checkJSON(r); err != nil {
		return false, err
	}
	body, err := io.ReadAll(http.MaxBytesReader(nil, r.Body, maxBody))
	if err != nil {
		return false, err
	}
	if len(bytes.TrimSpace(body)) == 0 {
		return false, nil
	}
	return true, decodeJSON(bytes.NewReader(body), v)
}

// buffers are reused between answers; a large one is dropped rather than kept.
var buffers = sync.Pool{New: func() any { return new(bytes.Buffer) }}

// writeJSON answers with v. The whole answer is made first, so that it has a length and an error cannot cut it.
func writeJSON(w http.ResponseWriter, code int, v any) error {
	buf := buffers.Get().(*bytes.Buffer)
	defer func() {
		if buf.Cap() <= 256<<10 {
			buf.Reset()
			buffers.Put(buf)
		}
	}()
	enc := json.NewEncoder(buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return err
	}
	h := w.Header()
	h["Content-Type"] = []string{"application/json"}
	h["Content-Length"] = []string{strconv.Itoa(buf.Len())}
	w.WriteHeader(code)
	_, _ = w.Write(buf.Bytes()) // a client that left is not an error of ours
	return nil
}

func ok(w http.ResponseWriter, v any) error { return writeJSON(w, http.StatusOK, v) }

func noContent(w http.ResponseWriter) error {
	w.WriteHeader(http.StatusNoContent)
	return nil
}
