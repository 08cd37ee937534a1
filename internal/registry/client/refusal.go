package client

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode"

	"corten.dev/corten/internal/errs"
)

// Error is a refusal by a registry or a token service, in its own words as Docker shows them: "denied: requested access to the resource is
// denied". It unwraps to a kind of errs.
type Error struct {
	Status     int
	Code       string // as in the distribution specification ("MANIFEST_UNKNOWN"); empty when the answer had none
	Message    string
	RetryAfter time.Duration // what the server asked for; 0 when it did not
	noPassword bool          // the registry wants one, and there was none
	where      string        // Get "https://host/v2/…", for answers without words
	place      *url.URL      // who said it
	elsewhere  bool          // the registry had led to that place, which its own credentials do not concern
	kind       error
}

func (e *Error) Error() string {
	if e.elsewhere && e.Code != "" {
		return e.where + ": " + e.words()
	}
	return e.words()
}

func (e *Error) words() string {
	switch code := strings.ReplaceAll(strings.ToLower(e.Code), "_", " "); {
	case e.noPassword:
		return e.where + ": no basic auth credentials" // Docker's words
	case e.Code == "" && e.Message == "":
		return fmt.Sprintf("%s: received unexpected HTTP status: %d %s", e.where, e.Status, http.StatusText(e.Status))
	case e.Code == "":
		return fmt.Sprintf("%s: received unexpected HTTP status: %d %s: %s", e.where, e.Status, http.StatusText(e.Status), e.Message)
	case e.Message == "":
		return code
	default:
		return code + ": " + e.Message
	}
}

// Unwrap gives the kind.
func (e *Error) Unwrap() error { return e.kind }

// Bounds of what is read and shown of an answer that refuses.
const (
	maxRefusal = 64 << 10
	maxWords   = 1 << 10
)

// refusal makes an error of an answer, and closes it. secrets never appear in it, whatever the server echoes.
func refusal(resp *http.Response, secrets []string) *Error {
	defer resp.Body.Close()
	e := &Error{Status: resp.StatusCode, where: where(resp.Request.Method, resp.Request.URL), place: resp.Request.URL, RetryAfter: retryAfter(resp.Header)}
	// A body that cannot be read leaves the status, which says enough.
	body, _ := io.ReadAll(io.LimitReader(resp.Body, maxRefusal))
	e.Code, e.Message = refusalWords(resp, body)
	for _, secret := range secrets {
		if len(secret) >= 4 {
			e.Code, e.Message = strings.ReplaceAll(e.Code, secret, "***"), strings.ReplaceAll(e.Message, secret, "***")
		}
	}
	e.Code, e.Message = oneLine(e.Code), oneLine(e.Message)
	e.kind = kindOf(e.Status, e.Code)
	return e
}

// refusalWords finds code and message: in the challenge (RFC 6750, 3.1), in the body, or by the status.
func refusalWords(resp *http.Response, body []byte) (code, message string) {
	for _, ch := range challenges(resp.Header) {
		if ch.scheme == "bearer" && resp.StatusCode == http.StatusUnauthorized && ch.params["error"] == "insufficient_scope" {
			return "DENIED", "requested access to the resource is denied"
		}
	}
	code, message = bodyWords(body, resp.Header.Get("Content-Type"))
	if code != "" {
		return code, message
	}
	switch resp.StatusCode {
	case http.StatusUnauthorized:
		if message == "" {
			message = "authentication required"
		}
		return "UNAUTHORIZED", message
	case http.StatusNotFound:
		if resp.Request.Method == http.MethodHead && strings.Contains(resp.Request.URL.Path, "/manifests/") {
			return "MANIFEST_UNKNOWN", "manifest unknown" // HEAD has no body to say so
		}
	case http.StatusForbidden:
		if message == "" {
			message = "requested access to the resource is denied"
		}
		return "DENIED", message
	case http.StatusTooManyRequests:
		if message == "" {
			message = "too many requests"
		}
		return "TOOMANYREQUESTS", message
	}
	return "", message
}

// bodyWords reads the forms of error bodies that are about: the distribution specification's, a lone "details" (Hub's token service), one
// "error" (OAuth2), and short plain text. Pages of HTML say nothing to the user of a registry.
func bodyWords(body []byte, contentType string) (code, message string) {
	var form struct {
		Errors []struct {
			Code    json.RawMessage `json:"code"`
			Message string          `json:"message"`
		} `json:"errors"`
		Details     string          `json:"details"`
		Error       json.RawMessage `json:"error"`
		Description string          `json:"error_description"`
		Message     string          `json:"message"`
	}
	if json.Unmarshal(body, &form) != nil {
		if strings.HasPrefix(contentType, "text/plain") && len(body) < maxWords && !bytes.ContainsAny(body, "<>") {
			return "", string(bytes.TrimSpace(body))
		}
		return "", ""
	}
	if len(form.Errors) > 0 {
		first := form.Errors[0]
		var word string
		if json.Unmarshal(first.Code, &word) != nil {
			return "", first.Message
		}
		return word, first.Message
	}
	var word string
	if json.Unmarshal(form.Error, &word) != nil {
		word = ""
	}
	for _, s := range []string{form.Details, form.Description, form.Message, word} {
		if s != "" {
			return "", s
		}
	}
	return "", ""
}

func kindOf(status int, code string) error {
	switch code {
	case "DENIED":
		return errs.Forbidden
	case "UNAUTHORIZED":
		return errs.Unauthorized
	case "UNSUPPORTED":
		return errs.NotImplemented
	}
	switch {
	case status == http.StatusUnauthorized:
		return errs.Unauthorized
	case status == http.StatusForbidden:
		return errs.Forbidden
	case status == http.StatusNotFound:
		return errs.NotFound
	case status == http.StatusMethodNotAllowed || status == http.StatusNotImplemented:
		return errs.NotImplemented
	case status == http.StatusTooManyRequests || status == http.StatusRequestTimeout || status >= 500:
		return errs.Unavailable
	case status == http.StatusConflict:
		return errs.Conflict
	default:
		return errs.Invalid
	}
}

// oneLine makes foreign words fit for one line of ours.
func oneLine(s string) string {
	cut := false
	if len(s) > maxWords {
		s, cut = s[:maxWords], true
	}
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	s = strings.Join(strings.Fields(s), " ")
	if cut {
		s += "…"
	}
	return s
}

// where names a request as Docker does. Queries and user names of URLs may be secrets (signed links), so they stay out.
func where(method string, u *url.URL) string {
	if len(method) > 1 {
		method = method[:1] + strings.ToLower(method[1:])
	}
	path := u.EscapedPath()
	if len(path) > maxWords {
		path = path[:maxWords] + "…"
	}
	return fmt.Sprintf("%s %q", method, u.Scheme+"://"+u.Host+path)
}

// retryAfter reads Retry-After: seconds or a date.
func retryAfter(h http.Header) time.Duration {
	v := h.Get("Retry-After")
	if n, err := strconv.ParseUint(v, 10, 31); err == nil {
		return time.Duration(n) * time.Second
	}
	if at, err := http.ParseTime(v); err == nil {
		return max(0, time.Until(at))
	}
	return 0
}

// pullError gives a refusal of a pull the words that Docker's users know. name is the familiar name of a manifest, "" for a blob; repo is without tag.
func pullError(err error, name, repo string) error {
	var e *Error
	if !errors.As(err, &e) || e.elsewhere {
		return err
	}
	switch {
	case e.Code == "DENIED":
		return errs.New(errs.NotFound, "pull access denied for %s, repository does not exist or may require 'docker login': %w", repo, err)
	case e.Code == "NAME_UNKNOWN":
		return errs.New(errs.NotFound, "repository %s not found: %w", repo, err)
	case name != "" && (e.Code == "MANIFEST_UNKNOWN" || e.Status == http.StatusNotFound):
		return errs.New(errs.NotFound, "manifest for %s not found: %w", name, err)
	}
	return err
}
