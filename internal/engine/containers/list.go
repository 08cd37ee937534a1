package containers

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"corten.dev/corten/internal/container"
	"corten.dev/corten/internal/engine/hostspec"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/filter"
	"corten.dev/corten/internal/network"
	"corten.dev/corten/internal/reference"
	"corten.dev/corten/internal/snapshot"
)

// List answers from memory: it waits for no container.
func (s *Service) List(ctx context.Context, opts ListOptions) ([]View, error) {
	match, err := s.matcher(ctx, opts)
	if err != nil {
		return nil, err
	}
	var recs []*container.Record // records are large: with a thousand of them, copies would be most of the time
	for _, ctr := range slices.Backward(s.table.all()) {
		if rec := ctr.shown(); match(rec) {
			recs = append(recs, rec)
			if len(recs) == opts.Limit { // the newest; those of a thousand others are not looked at
				break
			}
		}
	}
	views := make([]View, len(recs))
	named := s.stillNamed(ctx)
	for i, rec := range recs {
		if opts.Brief {
			views[i].Record = *rec
		} else {
			views[i] = s.view(*rec)
		}
		if !named(rec) {
			views[i].ImageRef = rec.Image.String()
		}
		if opts.Size {
			if err := s.sizes(ctx, &views[i]); err != nil {
				return nil, err
			}
		}
	}
	return views, nil
}

// stillNamed tells whether the name that a container's image was asked for by still means that image; each image is looked up once.
func (s *Service) stillNamed(ctx context.Context) func(rec *container.Record) bool {
	type use struct{ id, ref string }
	known := map[use]bool{}
	return func(rec *container.Record) bool {
		u := use{rec.Image.String(), rec.ImageRef}
		is, seen := known[u]
		if !seen {
			is = s.means(ctx, u.ref, u.id)
			known[u] = is
		}
		return is
	}
}

func (s *Service) means(ctx context.Context, ref, id string) bool {
	if _, hex, _ := strings.Cut(id, ":"); hex == "" || strings.HasPrefix(id, ref) || strings.HasPrefix(hex, ref) {
		return true
	}
	img, err := s.Images.Get(ctx, id) // by id: a name could bring the built-in image back
	if err != nil {
		return !errors.Is(err, errs.NotFound)
	}
	name, err := reference.Parse(ref)
	return err == nil && (slices.Contains(img.Tags, name.WithDefaultTag().Familiar()) || slices.Contains(img.Digests, name.Familiar()))
}

// Inspect shows one container.
func (s *Service) Inspect(ctx context.Context, ref string, size bool) (View, error) {
	ctr, err := s.find(ref)
	if err != nil {
		return View{}, err
	}
	view := s.view(*ctr.shown())
	ctr.mu.Lock()
	view.Execs = ctr.execs
	for _, f := range ctr.shipping {
		view.LogDestinations = append(view.LogDestinations, f.Status())
	}
	ctr.mu.Unlock()
	if _, listed := view.Host.Annotations[container.AnnotationEgress]; listed && view.State.Status.Live() {
		counts, _, err := s.Networks.EgressCounts(ctx)
		if err != nil { // all else of the container is known
			s.Log.Warn("read what an egress list counted", "container", view.Name, "error", err)
		} else if c, has := counts[ctr.id]; has {
			view.Egress = &c
		}
	}
	if at, ok := s.Trees.(snapshot.Locator); ok {
		if view.Place, err = at.Locate(view.TreeKey()); err != nil && !errors.Is(err, errs.NotFound) { // one that is being removed has lost its tree
			return View{}, err
		}
	}
	if size {
		if err := s.sizes(ctx, &view); err != nil {
			return View{}, err
		}
	}
	return view, nil
}

func (s *Service) view(rec container.Record) View {
	files := s.generatedFiles(&rec)
	rec.Host.Links = s.shownLinks(&rec)
	view := View{Record: rec, Driver: s.Trees.Name(), ResolvConfPath: files.ResolvConf, HostnamePath: files.Hostname, HostsPath: files.Hosts}
	view.LogPath = s.logPath(&rec)
	if sec, err := hostspec.ParseSecurityOpt(rec.Host.SecurityOpt); err == nil {
		view.Host.MaskedPaths, view.Host.ReadonlyPaths = hostspec.HiddenPaths(&rec.Host, sec)
	}
	return view
}

func (s *Service) sizes(ctx context.Context, view *View) error {
	rw, err := s.Trees.Usage(ctx, view.TreeKey())
	if err != nil {
		return fmt.Errorf("size of container %s: %w", view.Name, err)
	}
	total := rw
	if view.Image != "" {
		if img, err := s.Images.Get(ctx, view.Image.String()); err == nil {
			total += img.Size
		}
	}
	view.SizeRw, view.SizeRootFs = &rw, &total
	return nil
}

var statuses = []string{"created", "restarting", "running", "removing", "paused", "exited", "dead"}

// matcher turns the filters of `ps` into one function. What must be looked up is looked up once.
func (s *Service) matcher(ctx context.Context, opts ListOptions) (func(*container.Record) bool, error) {
	f := opts.Filters
	err := f.Accept("ancestor", "annotation", "before", "exited", "expose", "health", "id", "is-task", "isolation", "label", "name", "network", "publish", "since", "status", "volume")
	if err != nil {
		return nil, err
	}
	for _, st := range f["status"] {
		if !slices.Contains(statuses, st) {
			return nil, errs.New(errs.Invalid, "invalid filter 'status=%s'", st)
		}
	}
	for _, h := range f["health"] {
		if !slices.Contains([]string{"starting", "healthy", "unhealthy", "none"}, h) {
			return nil, errs.New(errs.Invalid, "unrecognised filter value for health: %s", h)
		}
	}
	task, err := f.Bool("is-task", false)
	if err != nil {
		return nil, err
	}
	var codes []int
	for _, v := range f["exited"] {
		code, err := strconv.Atoi(v)
		if err != nil {
			return nil, errs.New(errs.Invalid, "invalid filter 'exited=%s'", v)
		}
		codes = append(codes, code)
	}
	before, since, err := s.bounds(f)
	if err != nil {
		return nil, err
	}
	ancestors, err := s.ancestors(ctx, f)
	if err != nil {
		return nil, err
	}
	published, err := portFilter(f["publish"])
	if err != nil {
		return nil, err
	}
	exposed, err := portFilter(f["expose"])
	if err != nil {
		return nil, err
	}
	all := opts.All || opts.Limit > 0 || f.Has("status") || f.Has("exited") || f.Has("before") || f.Has("since")
	return func(rec *container.Record) bool {
		st := rec.State.Status
		switch {
		case !all && !st.Live() && st != container.Restarting,
			!f.Exact("status", string(st)),
			!f.Match("id", rec.ID) && !f.Prefix("id", rec.ID),
			!f.Match("name", rec.Name) && !f.Match("name", "/"+rec.Name),
			!f.Labels("label", rec.Config.Labels),
			!f.Labels("annotation", rec.Host.Annotations),
			codes != nil && (!slices.Contains(codes, rec.State.ExitCode) || st != container.Exited && st != container.Dead),
			!before.IsZero() && !rec.Created.Before(before),
			!since.IsZero() && !rec.Created.After(since),
			ancestors != nil && !ancestors[rec.Image.String()] && !slices.Contains(f["ancestor"], rec.ImageRef),
			f.Has("volume") && !hasVolume(rec, f["volume"]),
			f.Has("network") && !hasNetwork(rec, f["network"]),
			f.Has("health") && !slices.Contains(f["health"], healthWord(rec)),
			f.Has("is-task") && task,
			published != nil && !published.any(publishedPorts(rec)),
			exposed != nil && !exposed.any(exposedPorts(rec)):
			return false
		}
		return true
	}, nil
}

// healthWord is what the health filter of ps compares with.
func healthWord(rec *container.Record) string {
	if rec.State.Health == nil {
		return "none"
	}
	return string(rec.State.Health.Status)
}

func (s *Service) bounds(f filter.Args) (before, since time.Time, err error) {
	for _, ref := range f["before"] {
		ctr, err := s.find(ref)
		if err != nil {
			return before, since, err
		}
		if t := ctr.record().Created; before.IsZero() || t.Before(before) {
			before = t
		}
	}
	for _, ref := range f["since"] {
		ctr, err := s.find(ref)
		if err != nil {
			return before, since, err
		}
		if t := ctr.record().Created; t.After(since) {
			since = t
		}
	}
	return before, since, nil
}

// ancestors finds the images named; a container counts when it was made of one, or of one that stands on it.
func (s *Service) ancestors(ctx context.Context, f filter.Args) (map[string]bool, error) {
	if !f.Has("ancestor") {
		return nil, nil
	}
	ids := map[string]bool{}
	var roots [][]string
	for _, ref := range f["ancestor"] {
		img, err := s.Images.Get(ctx, ref)
		if err != nil {
			s.Log.Debug("ps filter: no such image", "ancestor", ref)
			continue
		}
		ids[img.ID.String()] = true
		roots = append(roots, layersOf(img.Config.RootFS))
	}
	for _, ctr := range s.table.all() {
		id := ctr.record().Image.String()
		if _, known := ids[id]; known || id == "" {
			continue
		}
		img, err := s.Images.Get(ctx, id)
		if err != nil {
			continue // removed by force
		}
		layers := layersOf(img.Config.RootFS)
		for _, root := range roots {
			if len(root) > 0 && len(layers) >= len(root) && slices.Equal(layers[:len(root)], root) {
				ids[id] = true
			}
		}
	}
	return ids, nil
}

func hasVolume(rec *container.Record, want []string) bool {
	for _, mnt := range rec.Mounts {
		for _, w := range want {
			if mnt.Name != "" && mnt.Name == w || mnt.Target == path.Clean(w) || mnt.Source == path.Clean(w) {
				return true
			}
		}
	}
	return false
}

func hasNetwork(rec *container.Record, want []string) bool {
	for name := range rec.Networks {
		if slices.Contains(want, name) {
			return true
		}
	}
	if rec.Sandbox != nil {
		for _, ep := range rec.Sandbox.Endpoints {
			if slices.ContainsFunc(want, func(w string) bool { return len(w) >= 3 && strings.HasPrefix(ep.NetworkID, w) }) {
				return true
			}
		}
	}
	return false
}

// ports is a set "80/tcp".
type ports map[string]bool

func portFilter(values []string) (ports, error) {
	if len(values) == 0 {
		return nil, nil
	}
	set := ports{}
	for _, v := range values {
		first, last, proto, ok := portRange(v)
		if !ok {
			return nil, errs.New(errs.Invalid, "invalid port in filter: %s", v)
		}
		for p := first; p <= last; p++ {
			set[fmt.Sprintf("%d/%s", p, proto)] = true
		}
	}
	return set, nil
}

func (p ports) any(have []string) bool {
	return slices.ContainsFunc(have, func(port string) bool { return p[port] })
}

func publishedPorts(rec *container.Record) []string {
	from := rec.Host.Ports
	if rec.Sandbox != nil {
		from = rec.Sandbox.Ports
	}
	return portNames(from, func(p network.Port) uint16 { return p.HostPort })
}

func exposedPorts(rec *container.Record) []string {
	list := portNames(rec.Host.Ports, func(p network.Port) uint16 { return p.ContainerPort })
	for port := range rec.Config.ExposedPorts {
		if !strings.Contains(port, "/") {
			port += "/tcp"
		}
		list = append(list, port)
	}
	return list
}

func portNames(from []network.Port, number func(network.Port) uint16) []string {
	list := make([]string, 0, len(from))
	for p := range network.Each(from) {
		list = append(list, fmt.Sprintf("%d/%s", number(p), p.Proto))
	}
	return list
}
