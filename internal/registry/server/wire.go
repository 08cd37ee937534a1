package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"syscall"

	"corten.dev/corten/internal/errs"
)

// The error codes of the specification.
const (
	codeBlobUnknown         = "BLOB_UNKNOWN"
	codeUploadInvalid       = "BLOB_UPLOAD_INVALID"
	codeUploadUnknown       = "BLOB_UPLOAD_UNKNOWN"
	codeDigestInvalid       = "DIGEST_INVALID"
	codeManifestBlobUnknown = "MANIFEST_BLOB_UNKNOWN"
	codeManifestInvalid     = "MANIFEST_INVALID"
	codeManifestUnknown     = "MANIFEST_UNKNOWN"
	codeNameInvalid         = "NAME_INVALID"
	codeNameUnknown         = "NAME_UNKNOWN"
	codeSizeInvalid         = "SIZE_INVALID"
	codeUnauthorized        = "UNAUTHORIZED"
	codeDenied              = "DENIED"
	codeUnsupported         = "UNSUPPORTED"
	codeTooManyRequests     = "TOOMANYREQUESTS"
)

// problem is an error as the API tells it.
type problem struct {
	status  int
	code    string
	message string
	details []any // one entry of "errors" for each; none is one entry without detail
	cause   error // for the log
}

func (p *problem) Error() string { return p.message }
func (p *problem) Unwrap() error { return p.cause }

func refuse(status int, code, format string, args ...any) *problem {
	err := fmt.Errorf(format, args...)
	return &problem{status: status, code: code, message: err.Error(), cause: errors.Unwrap(err)}
}

// problemOf translates the kinds of errors, in this one place.
func problemOf(err error) *problem {
	var p *problem
	if errors.As(err, &p) {
		return p
	}
	p = &problem{status: http.StatusInternalServerError, code: "INTERNAL", message: err.Error(), cause: err}
	switch {
	case errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT):
		p.status, p.code, p.message = http.StatusInsufficientStorage, "NO_SPACE", "the registry's storage is full"
	case errors.Is(err, errs.Unauthorized):
		p.status, p.code = http.StatusUnauthorized, codeUnauthorized
	case errors.Is(err, errs.Forbidden):
		p.status, p.code = http.StatusForbidden, codeDenied
	case errors.Is(err, errs.Invalid):
		p.status, p.code = http.StatusBadRequest, codeUnsupported
	case errors.Is(err, errs.NotFound):
		p.status, p.code = http.StatusNotFound, codeNameUnknown
	case errors.Is(err, errs.Conflict):
		p.status, p.code = http.StatusConflict, codeUnsupported
	case errors.Is(err, errs.NotImplemented):
		p.status, p.code = http.StatusMethodNotAllowed, codeUnsupported
	case errors.Is(err, errs.Unavailable) || errors.Is(err, context.DeadlineExceeded):
		p.status, p.code = http.StatusServiceUnavailable, "UNAVAILABLE"
	case errors.Is(err, context.Canceled):
		p.status, p.code = http.StatusServiceUnavailable, "CANCELED"
	default:
		p.message = "internal error" // the reason may name folders and hosts: it is in the log
	}
	return p
}

type wireError struct {
	Code    string `json:"code"`
	Message string `json:"message,omitempty"`
	Detail  any    `json:"detail,omitempty"`
}

// writeProblem answers with an error, unless the answer has begun.
func (c *call) writeProblem(p *problem) {
	if c.w.status != 0 {
		return
	}
	list := make([]wireError, 0, 1)
	for _, detail := range p.details {
		list = append(list, wireError{Code: p.code, Message: p.message, Detail: detail})
	}
	if len(list) == 0 {
		list = append(list, wireError{Code: p.code, Message: p.message})
	}
	body, err := json.Marshal(map[string][]wireError{"errors": list})
	if err != nil {
		body = []byte(`{"errors":[{"code":"INTERNAL"}]}`)
	}
	h := c.w.Header()
	for _, name := range []string{"ETag", "Cache-Control", "Docker-Content-Digest", "Accept-Ranges"} {
		h.Del(name)
	}
	switch p.status {
	case http.StatusMethodNotAllowed:
		if h.Get("Allow") == "" {
			h.Set("Allow", methods[c.route.kind])
		}
	case http.StatusTooManyRequests:
		if h.Get("Retry-After") == "" {
			h.Set("Retry-After", "60")
		}
	case http.StatusServiceUnavailable:
		h.Set("Retry-After", "5")
	}
	c.writeBody(p.status, "application/json", body)
}

// writeBody answers with a whole body, which HEAD leaves out.
func (c *call) writeBody(status int, contentType string, body []byte) {
	h := c.w.Header()
	h.Set("Content-Type", contentType)
	h.Set("Content-Length", strconv.Itoa(len(body)))
	h.Set("X-Content-Type-Options", "nosniff")
	c.w.WriteHeader(status)
	if c.req.Method == http.MethodHead {
		return
	}
	if _, err := c.w.Write(body); err != nil {
		c.r.log.Debug("client is gone", "path", c.req.URL.Path, "error", err)
	}
}

// writeEmpty answers without a body.
func (c *call) writeEmpty(status int) {
	if status != http.StatusNoContent && status != http.StatusNotModified {
		c.w.Header().Set("Content-Length", "0")
	}
	c.w.WriteHeader(status)
}

func (c *call) writeJSON(v any, contentType string) error {
	body, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("write answer: %w", err)
	}
	c.writeBody(http.StatusOK, contentType, body)
	return nil
}
