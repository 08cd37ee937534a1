package server

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/docker/go-units"
	wirebuild "github.com/moby/moby/api/types/build"
	wire "github.com/moby/moby/api/types/registry"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/build/source/mirror"
	"corten.dev/corten/internal/engine/builds"
	"corten.dev/corten/internal/errs"
)

// buildRoutes are the builds of clients without BuildKit: a tar in, Docker's JSON stream out.
func (s *Server) buildRoutes() []entry {
	list := []entry{{"POST /build", s.build}, {"POST /build/prune", s.buildPrune}, {"POST /build/cancel", s.buildCancel}}
	if s.Builds == nil || s.BuildMirrors == nil {
		for i := range list {
			list[i].handle = absent("this engine was started without the service for builds")
		}
	}
	return list
}

// build runs a Dockerfile of the tar in the body, or of an address.
func (s *Server) build(w http.ResponseWriter, r *request) error {
	if r.query.get("version") == "2" {
		return s.sessionBuild(w, r)
	}
	req, err := s.classicRequest(r)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	defer context.AfterFunc(s.streams, cancel)()
	if id := r.query.get("buildid"); id != "" {
		req.Ref = id
		remove, err := s.cancels.add(id, cancel)
		if err != nil {
			return err
		}
		defer remove()
	}
	if r.query.get("remote") == "" {
		files, release, err := s.BuildMirrors.Unpack(ctx, r.Body, mirror.Request{Name: "context"})
		if err != nil {
			return err
		}
		defer release()
		req.Session.Contexts = given{files}
	}
	p := newProgress(w, false)
	told := &classic{out: p, quiet: r.query.flag("q"), kept: r.query.get("rm") != "" && !r.query.flag("rm"), failedToo: r.query.flag("forcerm"), imageOf: s.imageID(ctx, r.query.get("platform"))}
	if name, target := r.query.get("dockerfile"), r.query.get("target"); req.Session.Contexts != nil {
		told.plan = planOf(ctx, req.Session.Contexts, name, target)
	} else if !told.quiet {
		told.plan = s.remotePlan(ctx, req.Session, r.query.get("remote"), name, target)
	}
	req.Status = told.update
	resp, err := s.Builds.Build(ctx, req)
	id := resp.Exporter["containerimage.config.digest"]
	told.finish(id, err)
	if err != nil {
		return p.finish(classicError(p, err))
	}
	if told.quiet {
		p.say(id + "\n")
		return p.finish(nil)
	}
	aux, err := json.Marshal(wirebuild.Result{ID: id})
	if err != nil {
		return p.finish(err)
	}
	m := message{}
	m.Aux = (*json.RawMessage)(&aux)
	p.send(m)
	p.say("Successfully built " + short(id) + "\n")
	for _, name := range r.query["t"] {
		if name != "" {
			p.say("Successfully tagged " + taggedName(name) + "\n")
		}
	}
	return p.finish(nil)
}

// imageID finds ids of images by their names.
func (s *Server) imageID(ctx context.Context, platform string) func(name string) string {
	return func(name string) string {
		if s.Images == nil || platform != "" { // its name may lead to another one of several
			return ""
		}
		img, err := s.Images.Inspect(ctx, name)
		if err != nil {
			return "" // it was brought for this build, and has no name here
		}
		return img.ID.String()
	}
}

// short is how Docker names an image in a line.
func short(id string) string {
	_, hex, ok := strings.Cut(id, ":")
	if !ok {
		hex = id
	}
	return hex[:min(len(hex), 12)]
}

func taggedName(name string) string {
	if i := strings.LastIndexByte(name, ':'); i < 0 || strings.ContainsRune(name[i:], '/') {
		return name + ":latest"
	}
	return name
}

// classicError sends a failed step as Docker's builder does: with the code of the command. What failed before the first message keeps its status.
func classicError(p *progress, err error) error {
	var step *build.StepError
	if !errors.As(err, &step) || step.ExitCode <= 0 || p.out.st == nil {
		return err
	}
	text := fmt.Sprintf("The command '%s' returned a non-zero code: %d", strings.Join(step.Vertex.Op.GetExec().GetMeta().GetArgs(), " "), step.ExitCode)
	m := message{OldError: text}
	m.Error = jsonError(step.ExitCode, text)
	p.send(m)
	return nil
}

// given is a directory that came with the request; it is every local source that the frontend asks for.
type given struct{ files *build.Files }

// Open implements [build.Contexts].
func (g given) Open(_ context.Context, name string, opts build.ContextOptions) (*build.Files, func(), error) {
	if name != "context" && name != "dockerfile" {
		return nil, nil, errs.New(errs.NotFound, "no context named %q", name)
	}
	files := *g.files
	files.Include, files.Exclude, files.Follow = opts.Include, opts.Exclude, opts.Follow
	return &files, func() {}, nil
}

// classicRequest reads the query (Docker Engine API, "Build an image").
func (s *Server) classicRequest(r *request) (builds.Request, error) {
	q := r.query
	req := builds.Request{Frontend: "dockerfile.v0", FrontendAttrs: map[string]string{}, Session: &build.Session{}}
	if q.flag("squash") {
		return req, errs.New(errs.NotImplemented, "squash is not supported: a multi-stage build leaves one layer of a stage")
	}
	if v := q.get("version"); v != "" && v != "1" && v != "2" {
		return req, errs.New(errs.Invalid, "invalid version %q: 1 is the classic builder, 2 is BuildKit", v)
	}
	if v := q.get("isolation"); v != "" && v != "default" {
		return req, errs.New(errs.Invalid, "Unsupported isolation: %q", v)
	}
	if slices.ContainsFunc(q["securityopt"], func(v string) bool { return v != "" && v != "null" && v != "[]" }) {
		return req, errs.New(errs.Invalid, "The daemon on this platform does not support setting security options on build")
	}
	attrs := req.FrontendAttrs
	set := func(key, value string) {
		if value != "" {
			attrs[key] = value
		}
	}
	set("filename", q.get("dockerfile"))
	set("target", q.get("target"))
	set("platform", q.get("platform"))
	if remote := q.get("remote"); remote != clientSession && remote != uploadRequest {
		set("context", remote)
	}
	set("cgroup-parent", q.get("cgroupparent"))
	if q.flag("nocache") {
		attrs["no-cache"] = ""
	}
	if q.flag("pull") {
		attrs["image-resolve-mode"] = "pull"
	}
	for key, attr := range map[string]string{"shmsize": "shm-size", "memory": "memory", "memswap": "memswap", "cpushares": "cpushares", "cpuperiod": "cpuperiod", "cpuquota": "cpuquota"} {
		n, err := q.number(key)
		if err != nil {
			return req, err
		}
		if n != 0 {
			attrs[attr] = strconv.Itoa(n)
		}
	}
	set("cpusetcpus", q.get("cpusetcpus"))
	set("cpusetmems", q.get("cpusetmems"))
	if err := buildNetwork(&req, q.get("networkmode")); err != nil {
		return req, err
	}
	if err := jsonParts(&req, q); err != nil {
		return req, err
	}
	var hosts []string
	for _, h := range q["extrahosts"] {
		name, ip, ok := strings.Cut(h, ":")
		if !ok {
			return req, errs.New(errs.Invalid, "invalid extra host %q: it is NAME:IP", h)
		}
		hosts = append(hosts, name+"="+ip)
	}
	set("add-hosts", strings.Join(hosts, ","))
	names := slices.DeleteFunc(slices.Clone(q["t"]), func(n string) bool { return n == "" })
	export := builds.Export{Type: "image", Attrs: map[string]string{}}
	if len(names) > 0 {
		export.Attrs["name"] = strings.Join(names, ",")
	}
	req.Exports = []builds.Export{export}
	creds, err := registryConfig(r)
	req.Session.Credentials = creds
	return req, err
}

// buildNetwork says where steps run. Docker's classic builder asks nobody's leave for the host's network.
func buildNetwork(req *builds.Request, mode string) error {
	switch mode {
	case "", "default", "bridge":
	case "none":
		req.FrontendAttrs["force-network-mode"] = "none"
	case "host":
		req.FrontendAttrs["force-network-mode"] = "host"
		req.Entitlements = append(req.Entitlements, "network.host")
	default:
		return errs.New(errs.NotImplemented, "network mode %q is not supported for builds: default, none or host", mode)
	}
	return nil
}

// jsonParts reads what comes as JSON inside of the query.
func jsonParts(req *builds.Request, q form) error {
	read := func(key string, into any) error {
		text := q.get(key)
		if text == "" {
			return nil
		}
		if err := json.Unmarshal([]byte(text), into); err != nil {
			return errs.New(errs.Invalid, "invalid %s: %w", key, err)
		}
		return nil
	}
	var args, labels map[string]*string
	var from []string
	var limits []*units.Ulimit
	if err := cmp.Or(read("buildargs", &args), read("labels", &labels), read("cachefrom", &from), read("ulimits", &limits)); err != nil {
		return err
	}
	for prefix, list := range map[string]map[string]*string{"build-arg:": args, "label:": labels} {
		for key, value := range list {
			if value != nil { // null: the client did not have it
				req.FrontendAttrs[prefix+key] = *value
			}
		}
	}
	for _, ref := range from {
		req.CacheImports = append(req.CacheImports, builds.CacheOption{Type: "registry", Attrs: map[string]string{"ref": ref}})
	}
	var list []string
	for _, l := range limits {
		list = append(list, l.String())
	}
	if len(list) > 0 {
		req.FrontendAttrs["ulimit"] = strings.Join(list, ",")
	}
	return nil
}

// sent are the credentials that came with a request, by registry.
type sent map[string]wire.AuthConfig

// registryConfig reads X-Registry-Config. Errors never repeat what was sent.
func registryConfig(r *request) (sent, error) {
	header := strings.TrimRight(r.Header.Get("X-Registry-Config"), "=")
	if header == "" {
		return nil, nil
	}
	var list sent
	raw, err := base64.RawURLEncoding.DecodeString(strings.NewReplacer("+", "-", "/", "_").Replace(header))
	if err != nil || json.Unmarshal(raw, &list) != nil {
		return nil, errs.New(errs.Invalid, "invalid X-Registry-Config header: it is not JSON in base64")
	}
	return list, nil
}

// Credentials implements [build.Credentials].
func (l sent) Credentials(_ context.Context, host string) (user, secret string, err error) {
	auth, ok := l[host]
	if !ok && host == "docker.io" {
		auth = l[hubIndex]
	}
	creds, err := fromAuth(auth)
	if err != nil || creds.IdentityToken == "" {
		return creds.Username, creds.Password, err
	}
	return "", creds.IdentityToken, nil
}

// cancels are the builds that /build/cancel can end.
type cancels struct {
	mu  sync.Mutex
	all map[string]context.CancelFunc
}

// add refuses an id that another build has: it would take that one's place.
func (c *cancels) add(id string, cancel context.CancelFunc) (remove func(), err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.all[id] != nil {
		return nil, errs.New(errs.Conflict, "build %s is under way already", id)
	}
	if c.all == nil {
		c.all = map[string]context.CancelFunc{}
	}
	c.all[id] = cancel
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.all, id)
	}, nil
}

func (s *Server) buildCancel(w http.ResponseWriter, r *request) error {
	id := r.query.get("id")
	if id == "" {
		return errs.New(errs.Invalid, "build ID not provided")
	}
	s.cancels.mu.Lock()
	cancel := s.cancels.all[id]
	s.cancels.mu.Unlock()
	if cancel != nil { // one that has ended needs none
		cancel()
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

// buildPrune is `builder prune` and a part of `system prune`.
func (s *Server) buildPrune(w http.ResponseWriter, r *request) error {
	args, err := r.query.filters()
	if err != nil {
		return err
	}
	opts := builds.PruneOptions{All: r.query.flag("all"), Filters: args}
	for key, into := range map[string]*int64{"keep-storage": &opts.Reserved, "reserved-space": &opts.Reserved, "max-used-space": &opts.MaxUsed, "min-free-space": &opts.MinFree} {
		n, err := r.query.number(key)
		if err != nil {
			return err
		}
		if n != 0 {
			*into = int64(n)
		}
	}
	report := wirebuild.CachePruneReport{CachesDeleted: []string{}}
	space, err := s.Builds.Prune(r.Context(), opts, func(rec builds.UsageRecord) { report.CachesDeleted = append(report.CachesDeleted, rec.ID) })
	if err != nil {
		return err
	}
	report.SpaceReclaimed = uint64(space)
	return ok(w, report)
}
