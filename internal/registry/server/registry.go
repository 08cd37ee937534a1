package server

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/task"
)

// Registry is the http.Handler of the distribution API below /v2/.
type Registry struct {
	opts   Options
	limits Limits
	d      Driver
	log    *slog.Logger

	sessions sessions
	tags     task.Keyed // a tag that somebody is about to move
	fetches  fetches

	stop       context.CancelFunc // ends what is in the background
	running    context.Context    // until Close; for work that outlives its request, not for requests
	background sync.WaitGroup
	collecting atomic.Bool
}

// New makes a registry over a driver, which Close closes as well.
func New(opts Options) (*Registry, error) {
	if opts.Driver == nil {
		return nil, errs.New(errs.Invalid, "a registry needs a driver")
	}
	r := &Registry{opts: opts, limits: opts.Limits.withDefaults(), d: opts.Driver, log: opts.Logger}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	r.running, r.stop = context.WithCancel(context.Background())
	return r, nil
}

func (l Limits) withDefaults() Limits {
	if l.Manifest == 0 {
		l.Manifest = 4 << 20
	}
	if l.Uploads == 0 {
		l.Uploads = 10000
	}
	if l.UploadAge == 0 {
		l.UploadAge = 7 * 24 * time.Hour
	}
	if l.Page <= 0 {
		l.Page = 10000
	}
	if l.IdleBody == 0 {
		l.IdleBody = time.Minute
	}
	if l.Grace <= 0 {
		l.Grace = time.Hour
	}
	return l
}

// Close waits for what the registry does in the background and closes the driver. Requests must have ended before.
func (r *Registry) Close() error {
	r.stop()
	r.background.Wait()
	return r.d.Close()
}

// call is one request while it is answered.
type call struct {
	r     *Registry
	w     *answer
	req   *http.Request
	body  *body
	route route
}

// ServeHTTP answers one request.
func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	started := time.Now()
	ctl := http.NewResponseController(w)
	c := &call{
		r: r, req: req, route: parseRoute(req.URL.Path),
		w:    &answer{ResponseWriter: w, ctl: ctl, idle: r.limits.IdleBody},
		body: &body{r: req.Body, ctl: ctl, idle: r.limits.IdleBody, left: -1},
	}
	c.begin()
	defer c.end()
	w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	if err := c.serve(); err != nil {
		p := problemOf(err)
		if p.status >= 500 && !errors.Is(err, context.Canceled) {
			r.log.Error("request failed", "method", req.Method, "path", req.URL.Path, "status", p.status, "error", err)
		}
		c.writeProblem(p)
	}
	if r.opts.Observer != nil {
		c.observe(started)
	}
}

// begin and end set the deadlines around what we do ourselves; see answer.
func (c *call) begin() {
	c.w.deadline(0)
	c.drain()
}

func (c *call) end() {
	c.w.deadline(c.w.idle)
	if !c.body.ended {
		c.drain()
	}
}

// drain bounds how long net/http reads what we did not. Over HTTP/2 it does not read.
func (c *call) drain() {
	if c.req.ProtoMajor == 1 && c.req.ContentLength != 0 {
		_ = c.body.deadline(c.body.idle) // interrupted: then it is over already
	}
}

func (c *call) observe(started time.Time) {
	info := RequestInfo{
		Route: kindNames[c.route.kind], Method: c.req.Method, Repository: c.route.name, Status: c.w.status,
		In: c.body.in, Out: c.w.out, Duration: time.Since(started),
	}
	if c.r.opts.Guard != nil {
		info.User = c.r.opts.Guard.User(c.req.Header.Get("Authorization"))
	}
	c.r.opts.Observer.Finished(info)
}

// serve asks the guard first, so that somebody without rights learns nothing, then looks at the request.
func (c *call) serve() error {
	if c.route.kind == routeOther {
		return refuse(http.StatusNotFound, codeUnsupported, "no such endpoint")
	}
	if !c.route.kind.allows(c.req.Method) {
		return refuse(http.StatusMethodNotAllowed, codeUnsupported, "%s is not for this endpoint", c.req.Method)
	}
	if c.route.name != "" || c.route.kind > routeCatalog {
		if !validName(c.route.name) {
			return refuse(http.StatusBadRequest, codeNameInvalid, "invalid repository name")
		}
	}
	if err := c.allowed(c.route.name, c.route.actions(c.req.Method)); err != nil {
		return err
	}
	if err := c.writable(); err != nil {
		return err
	}
	switch c.route.kind {
	case routeBase:
		c.writeBody(http.StatusOK, "application/json", []byte("{}"))
		return nil
	case routeCatalog:
		return c.catalog()
	case routeTags:
		return c.listTags()
	case routeManifest:
		return c.manifest()
	case routeBlob:
		return c.blob()
	case routeUploads:
		return c.startUpload()
	case routeUpload:
		return c.upload()
	}
	return c.referrers()
}

// allowed asks the guard.
func (c *call) allowed(repo string, actions []Action) error {
	guard := c.r.opts.Guard
	if guard == nil {
		return nil
	}
	err := guard.Allow(c.req.Context(), c.req.Header.Get("Authorization"), repo, actions...)
	if errors.Is(err, errs.Unauthorized) {
		c.w.Header().Set("WWW-Authenticate", guard.Challenge(c.req.Host, repo, actions...))
	}
	if errors.Is(err, errs.Unauthorized) || errors.Is(err, errs.Forbidden) {
		p := *problemOf(err)
		p.details = []any{wanted(repo, actions)}
		return &p
	}
	return err
}

// wantedAccess is one thing that somebody may not do, as other registries write it into an error.
type wantedAccess struct{ Type, Class, Name, Action string }

// wanted says what a refusal is about. It is more than help: an engine of Docker's drops the message of an error that has the usual words and no detail, and
// then takes the refusal of a push for a passing trouble, which it tries again for a minute.
func wanted(repo string, actions []Action) []wantedAccess {
	list := make([]wantedAccess, len(actions))
	for i, action := range actions {
		list[i] = wantedAccess{Type: "repository", Name: repo, Action: string(action)}
		if repo == "" {
			list[i] = wantedAccess{Type: "registry", Name: "catalog", Action: "*"}
		}
	}
	return list
}

// writable refuses what the registry does not do at all.
func (c *call) writable() error {
	switch c.req.Method {
	case http.MethodGet, http.MethodHead:
		return nil
	case http.MethodDelete:
		if c.r.opts.NoDelete && c.route.kind != routeUpload {
			return refuse(http.StatusMethodNotAllowed, codeUnsupported, "this registry does not delete")
		}
	}
	if c.r.opts.ReadOnly {
		return refuse(http.StatusMethodNotAllowed, codeUnsupported, "this registry is read-only")
	}
	return nil
}

// location makes a path into what the Location header says.
func (c *call) location(path string) string {
	if !c.r.opts.AbsoluteLocation {
		return path
	}
	scheme := "http"
	if c.req.TLS != nil {
		scheme = "https"
	}
	if s := c.req.Header.Get("X-Forwarded-Proto"); s == "http" || s == "https" {
		scheme = s
	}
	return scheme + "://" + c.req.Host + path
}

// notModified answers 304 if the client has that already, or 412 if it insists on something else.
func (c *call) notModified(etag string) (bool, error) {
	if match := c.req.Header.Get("If-Match"); match != "" && !hasETag(match, etag) {
		return false, refuse(http.StatusPreconditionFailed, codeUnsupported, "it is %s, not %s", etag, match)
	}
	if match := c.req.Header.Get("If-None-Match"); match != "" && hasETag(match, etag) {
		c.w.Header().Del("Content-Length") // of the blob; HTTP/2 takes it at its word
		c.writeEmpty(http.StatusNotModified)
		return true, nil
	}
	return false, nil
}

// hasETag tells whether a list of tags, as the conditional headers have it, holds one. Some clients leave the quotes out.
func hasETag(list, etag string) bool {
	for part := range strings.SplitSeq(list, ",") {
		part = strings.TrimPrefix(strings.TrimSpace(part), "W/")
		if part == "*" || strings.Trim(part, `"`) == strings.Trim(etag, `"`) {
			return true
		}
	}
	return false
}
