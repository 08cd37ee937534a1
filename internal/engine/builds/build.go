package builds

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/solver/result"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/build/export"
	"corten.dev/corten/internal/build/frontend"
	"corten.dev/corten/internal/build/solve"
	"corten.dev/corten/internal/build/travel"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/snapshot"
	"corten.dev/corten/internal/task"
)

// Build implements [API].
//
//	check ─▶ job ─▶ frontend ─▶ results ─▶ exporters, side by side ─▶ caches ─▶ response
//	           └─ a step failed: OnError, while what it left is there
func (s *Service) Build(ctx context.Context, req Request) (_ Response, err error) {
	if req.Session == nil {
		req.Session = &build.Session{}
	}
	if req.Session.ID == "" {
		own := *req.Session
		own.ID = rand.Text()
		req.Session = &own
	}
	if req.Ref == "" {
		req.Ref = strings.ToLower(rand.Text())
	}
	if err := s.check(&req); err != nil {
		return Response{}, err
	}
	w := &working{Service: s, req: req, sessions: req.sessions(), began: time.Now(), platforms: s.Platforms()}
	line := Build{Ref: req.Ref, Frontend: req.Frontend, FrontendAttrs: req.FrontendAttrs, Exports: req.Exports, Created: w.began}
	if req.Internal {
		w.run = s.history.beginInternal(line)
	} else if w.run, err = s.history.begin(line); err != nil {
		return Response{}, err
	}
	var resp Response
	defer func() {
		kept := maps.Clone(resp.Exporter)
		maps.DeleteFunc(kept, func(key, _ string) bool { return strings.HasPrefix(key, provenanceKey) }) // history has it anyway
		w.run.end(kept, err)
		s.ended()
	}()
	resp, err = w.contained(ctx)
	return resp, err
}

// contained builds. The frontend of the Dockerfile language and the exporters run here, on what strangers wrote: a bug in them ends this build only, and history says so.
func (w *working) contained(ctx context.Context) (_ Response, err error) {
	defer task.Contain(w.Log, "build "+w.req.Ref, &err)
	return w.build(ctx)
}

// check refuses what can be refused before anything is done.
func (s *Service) check(req *Request) error {
	if req.Gateway == nil && req.Frontend == "" && req.Definition == nil {
		return errs.New(errs.Invalid, "a build needs a frontend or a definition")
	}
	for _, e := range req.Exports {
		if err := export.Check(export.Spec(e)); err != nil {
			return err
		}
	}
	if err := export.CheckAttestations(req.FrontendAttrs); err != nil {
		return err
	}
	for _, name := range req.Entitlements {
		kind, _, _ := strings.Cut(name, "=")
		if !slices.Contains(s.Entitlements, kind) {
			switch kind {
			case "network.host", "security.insecure", "device":
				return errs.New(errs.Forbidden, "granting entitlement %s is not allowed by build daemon configuration", kind)
			}
			return errs.New(errs.Invalid, "invalid entitlement: %s", name)
		}
	}
	for _, c := range req.CacheImports {
		if s.Caches == nil {
			return errs.New(errs.NotImplemented, "caches of type %s cannot be imported by this engine", c.Type)
		}
		if err := s.Caches.Check(travel.Option(c), false); err != nil {
			return err
		}
	}
	for _, c := range req.CacheExports {
		if s.Caches == nil {
			return errs.New(errs.NotImplemented, "caches of type %s cannot be exported by this engine", c.Type)
		}
		if err := s.Caches.Check(travel.Option(c), true); err != nil {
			return err
		}
	}
	return nil
}

// working is one build under way.
type working struct {
	*Service
	req      Request
	sessions Sessions
	run      *running
	job      *solve.Job
	began    time.Time

	platforms []ocispec.Platform // that steps can run for, the host's first

	mu      sync.Mutex    // guards imports
	imports []CacheOption // that the frontend named
}

func (w *working) status(st build.Status) {
	w.run.add(st)
	if w.req.Status != nil {
		w.req.Status(st)
	}
}

// begin tells of work that belongs to no step, in the line of its name. It is there once the job is.
func (w *working) begin(name string) (build.Progress, func(error)) {
	return w.job.Progress(digest.FromString(w.req.Ref+" "+name), name)
}

func (w *working) build(ctx context.Context) (Response, error) {
	opts := solve.JobOptions{Session: w.sessions, Status: w.status, Entitlements: w.req.Entitlements}
	policy := newPolicy(w.req.SourcePolicy)
	if policy != nil {
		opts.SourcePolicy = policy.op
	}
	for _, c := range w.req.CacheImports {
		imp, err := w.Caches.Import(ctx, travel.Option(c), travel.Job{Session: w.req.Session, Begin: w.begin})
		if err != nil {
			return Response{}, fmt.Errorf("import cache: %w", err)
		}
		opts.Imports = append(opts.Imports, imp)
	}
	w.job = w.Solver.Job(ctx, opts)
	defer w.job.Close()
	defer w.job.Flush()

	res, err := w.frontend(ctx, policy)
	if err == nil {
		err = w.evaluate(ctx, res)
	}
	if err != nil {
		w.failed(ctx, err)
		return Response{}, err
	}
	return w.finish(ctx, res)
}

// frontend gets the result that is to be exported.
func (w *working) frontend(ctx context.Context, policy *policy) (*gateway.Result, error) {
	opts := frontend.Options{
		Job: job{w.job, w}, Sources: w.Sources(w.sessions), Trees: w.Trees, Platforms: w.platforms, Session: w.req.Session.ID, Log: w.Log,
	}
	if policy != nil {
		opts.Policy = policy.source
	}
	if w.Steps != nil {
		opts.Containers = w.Steps.For(w.sessions, w.req.Entitlements)
	}
	gw := frontend.New(opts)
	switch {
	case w.req.Gateway != nil:
		return w.req.Gateway(ctx, gw.Client(maps.Clone(w.req.FrontendAttrs), w.req.FrontendInputs))
	case w.req.Frontend != "":
		return gw.Run(ctx, w.req.Frontend, w.req.FrontendAttrs, w.req.FrontendInputs)
	}
	return gw.Client(nil, nil).Solve(ctx, gateway.SolveRequest{Definition: w.req.Definition})
}

// job is a solver's job as frontends ask for it.
type job struct {
	*solve.Job
	w *working
}

func (j job) Solve(ctx context.Context, def *pb.Definition) (frontend.Result, error) {
	res, err := j.Job.Solve(ctx, def)
	if err != nil {
		return nil, err // a nil of another type would be a result
	}
	return res, nil
}

// Import adds what the request did not name. A cache that cannot be had is no reason to fail: everything can be built without it.
func (j job) Import(ctx context.Context, caches []gateway.CacheOptionsEntry) error {
	for _, c := range caches {
		option := CacheOption{Type: c.Type, Attrs: c.Attrs}
		if !j.w.newImport(option) {
			continue
		}
		err := errs.New(errs.NotImplemented, "this engine imports no caches")
		if j.w.Caches != nil {
			err = j.w.Caches.Check(travel.Option(option), false)
		}
		var imp solve.Import
		if err == nil {
			imp, err = j.w.Caches.Import(ctx, travel.Option(option), travel.Job{Session: j.w.req.Session, Begin: j.w.begin})
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			j.Warn(build.Warning{Level: 1, Short: fmt.Appendf(nil, "cache %s %s is not imported: %v", c.Type, c.Attrs["ref"], err)})
			continue
		}
		j.AddImport(imp)
	}
	return nil
}

// newImport tells whether a cache was not named before in this build.
func (w *working) newImport(c CacheOption) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	same := func(o CacheOption) bool {
		return o.Type == c.Type && o.Attrs["ref"] == c.Attrs["ref"] && o.Attrs["src"] == c.Attrs["src"]
	}
	if slices.ContainsFunc(w.req.CacheImports, same) || slices.ContainsFunc(w.imports, same) {
		return false
	}
	w.imports = append(w.imports, c)
	return true
}

// evaluate makes all results, side by side. The first error is told, but one that is more than the end of the others' context.
func (w *working) evaluate(ctx context.Context, res *gateway.Result) error {
	if res == nil {
		return errs.New(errs.Invalid, "the frontend gave no result")
	}
	var refs []gateway.Reference
	_ = res.EachRef(func(ref gateway.Reference) error { refs = append(refs, ref); return nil })
	return task.SideBySide(ctx, w.Log, "solve", len(refs), func(ctx context.Context, i int) error { return refs[i].Evaluate(ctx) })
}

// failed shows a failed step to who wants to look at it.
func (w *working) failed(ctx context.Context, err error) {
	var step *build.StepError
	if w.req.OnError == nil || !errors.As(err, &step) || ctx.Err() != nil {
		return
	}
	w.job.Flush()
	w.req.OnError(ctx, &failed{w, step})
}

// failed is a [Failed].
type failed struct {
	w    *working
	step *build.StepError
}

func (f *failed) Step() *build.StepError { return f.step }

func (f *failed) Shell(ctx context.Context, args []string, stdio Terminal) (int, error) {
	if f.w.Steps == nil {
		return -1, errs.New(errs.NotImplemented, "this engine runs no shell in a failed step")
	}
	return f.w.Steps.Shell(ctx, f.step, f.w.sessions, args, stdio)
}

// finish exports the result, and the cache.
func (w *working) finish(ctx context.Context, res *gateway.Result) (Response, error) {
	tree, refs, err := trees(ctx, res, w.leaves())
	if err != nil {
		return Response{}, err
	}
	said := map[string]string{}
	for key, value := range res.Metadata {
		if strings.HasPrefix(key, "frontend.") || strings.HasPrefix(key, "result.") || key == "version" && w.req.FrontendAttrs["requestid"] != "" {
			said[key] = string(value)
		}
	}
	var mu sync.Mutex
	take := func(more map[string]string) {
		mu.Lock()
		defer mu.Unlock()
		maps.Copy(said, more)
	}
	if err := w.exports(ctx, tree, refs, take); err != nil {
		return Response{}, err
	}
	if err := w.cacheExports(ctx, refs, take); err != nil {
		return Response{}, err
	}
	if !w.req.Internal && w.req.FrontendAttrs["requestid"] == "" {
		w.document(refs, said)
	}
	return Response{Exporter: said}, nil
}

// exports runs all exporters side by side.
func (w *working) exports(ctx context.Context, tree *export.Result, refs refs, take func(map[string]string)) error {
	return task.SideBySide(ctx, w.Log, "export", len(w.req.Exports), func(ctx context.Context, i int) error {
		more, err := w.export(ctx, w.req.Exports[i], tree, refs)
		if err == nil {
			take(more)
		}
		return err
	})
}

// titles are what people read while a result is exported.
var titles = map[string]string{
	"image": "exporting to image", "moby": "exporting to image", "registry": "exporting to image", "oci": "exporting to oci image format", "docker": "exporting to docker image format",
	"tar": "sending tarball", "local": "exporting to client directory",
}

func (w *working) export(ctx context.Context, e Export, tree *export.Result, refs refs) (_ map[string]string, err error) {
	ej := export.Job{Result: tree, Session: w.req.Session, Walk: refs.walk, Trace: w.trace(refs)}
	if title := titles[e.Type]; title != "" {
		p, done := w.job.Progress(digest.FromString(w.req.Ref+" "+e.ID+" "+title), title)
		defer func() { done(err) }()
		ej.Progress = p
	}
	defer task.Contain(w.Log, "export to "+e.Type, &err) // before done is told
	if slices.ContainsFunc(w.req.CacheExports, func(c CacheOption) bool { return c.Type == "inline" }) {
		ej.InlineCache = func(ctx context.Context, platform string, _ []snapshot.Layer) ([]byte, error) {
			if made := solved(refs.of(platform)); made != nil {
				return w.Caches.Inline(ctx, made)
			}
			return nil, nil
		}
	}
	said, err := w.Export.Export(ctx, export.Spec(e), ej)
	if err == nil {
		w.tell(e, said)
	}
	return said, err
}

// refs are the results by platform; "" is a single one.
type refs map[string]*frontend.Ref

// of is the result for a platform; the only one is for all. Nil is the empty tree.
func (r refs) of(platform string) *frontend.Ref {
	if ref, ok := r[platform]; ok {
		return ref
	}
	return r[""]
}

// walk gives the steps of a platform's result.
func (r refs) walk(platform string, fn func(solve.Step) error) error {
	if res := solved(r.of(platform)); res != nil {
		return res.Walk(fn)
	}
	return nil
}

// trace is what provenance is made of.
func (w *working) trace(refs refs) *export.Trace {
	return &export.Trace{
		ID: w.req.Ref, Started: w.began, Frontend: w.req.Frontend, Attrs: w.req.FrontendAttrs, Builder: w.platforms[0],
		Source: func(platform string) *pb.Source { return refs.of(platform).Definition().GetSource() },
	}
}

// provenanceKey is what buildx calls provenance in metadata files; behind it is the platform where there are several.
const provenanceKey = "buildx.build.provenance"

// document gives the record of the build the provenance of its results, and the asker who wants it. A result that has none is no reason to fail.
func (w *working) document(refs refs, said map[string]string) {
	trace := w.trace(refs)
	for _, platform := range slices.Sorted(maps.Keys(refs)) {
		kind, raw, err := trace.Record(refs.walk, platform)
		if err != nil {
			w.Log.Warn("a build is recorded without its provenance", "build", w.req.Ref, "platform", platform, "err", err)
			continue
		}
		w.run.document(Document{Platform: platform, Type: kind}, raw)
		if w.req.Provenance == "" {
			continue
		}
		told, err := export.ToldProvenance(raw, w.req.Provenance == "max")
		if err != nil {
			w.Log.Warn("provenance of a build is not told", "build", w.req.Ref, "platform", platform, "err", err)
			continue
		}
		said[strings.TrimSuffix(provenanceKey+"/"+platform, "/")] = base64.StdEncoding.EncodeToString(told)
	}
}

// solved is what the solver made of a result; nil for the empty tree.
func solved(ref *frontend.Ref) *solve.Result {
	if ref == nil {
		return nil
	}
	made, _ := ref.Result().(*solve.Result)
	return made
}

func (w *working) cacheExports(ctx context.Context, refs refs, take func(map[string]string)) error {
	var results []travel.Result
	for _, ref := range refs {
		if made := solved(ref); made != nil {
			results = append(results, made)
		}
	}
	for _, c := range w.req.CacheExports {
		if c.Type == "inline" {
			continue // it went with the image
		}
		title := "exporting cache to " + c.Type
		p, done := w.job.Progress(digest.FromString(w.req.Ref+" "+title+c.Attrs["ref"]+c.Attrs["dest"]), title)
		more, err := w.Caches.Export(ctx, travel.Option(c), results, travel.Job{Session: w.req.Session, Progress: p})
		done(err)
		if err != nil {
			return fmt.Errorf("export cache: %w", err)
		}
		take(more)
	}
	return nil
}

// leaves tells whether the layers of the result are needed here, for an exporter.
func (w *working) leaves() bool {
	return slices.ContainsFunc(w.req.Exports, func(e Export) bool { return e.Type != "cacheonly" })
}

// trees gives a result's outputs, with their layers here if bring, and the results themselves. What the cache only knows by name is made again for that.
func trees(ctx context.Context, res *gateway.Result, bring bool) (*export.Result, refs, error) {
	all := refs{}
	for platform, ref := range res.Refs {
		if r, ok := ref.(*frontend.Ref); ok {
			all[platform] = r
		}
	}
	if r, ok := res.Ref.(*frontend.Ref); ok {
		all[""] = r
	}
	tree, err := result.ConvertResult(res, func(ref gateway.Reference) (*build.Output, error) {
		r, ok := ref.(*frontend.Ref)
		if !ok {
			return nil, errs.New(errs.Invalid, "the frontend gave a result of another gateway (%T)", ref)
		}
		get := r.Result().Evaluate
		if bring {
			get = r.Result().Bring
		}
		out, err := get(ctx)
		if err != nil {
			return nil, err
		}
		return &out, nil
	})
	return tree, all, err
}
