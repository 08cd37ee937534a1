package images

import (
	"cmp"
	"context"
	"errors"
	"io"
	"log/slog"
	"path"
	goruntime "runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/engine/containers"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/events"
	"corten.dev/corten/internal/filter"
	"corten.dev/corten/internal/image"
	"corten.dev/corten/internal/manifest"
	"corten.dev/corten/internal/reference"
	"corten.dev/corten/internal/registry/client"
	"corten.dev/corten/internal/snapshot"
)

// Containers tells who stands on an image.
type Containers interface {
	ImageUsers(id digest.Digest) (stopped, running []string)
}

// Store is the image room.
type Store interface {
	image.Store
	image.Platforms
}

// Options join the service with its rooms; all without a default are needed.
type Options struct {
	Store      Store
	Containers Containers
	Events     *events.Bus
	Transfers  image.Transfers
	Blobs      Blobs
	Registry   client.Registry
	// Platform is what is pulled when nobody says which; the zero value is the one of this process.
	Platform manifest.Platform
	// MaxDownloads and MaxUploads bound how many layers are on their way at a time, of all pulls and pushes; 0 is 6 and 5.
	MaxDownloads, MaxUploads int
	Collection               Collection
	Log                      *slog.Logger
}

// Service implements [API] and [Registries].
type Service struct {
	Options
	flights *flights
	uploads limit
	grown   chan struct{} // images took more space

	stop context.CancelFunc // of the collection
	work sync.WaitGroup
}

var (
	_ API        = (*Service)(nil)
	_ Registries = (*Service)(nil)
)

// New makes the service.
func New(opts Options) *Service {
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	if opts.Platform == (manifest.Platform{}) {
		opts.Platform = manifest.Platform{OS: goruntime.GOOS, Arch: goruntime.GOARCH}
	}
	s := &Service{
		Options: opts,
		flights: newFlights(opts.Blobs, cmp.Or(opts.MaxDownloads, 6), opts.Log),
		uploads: newLimit(cmp.Or(opts.MaxUploads, 5)),
		grown:   make(chan struct{}, 1),
	}
	var ctx context.Context
	ctx, s.stop = context.WithCancel(context.Background())
	if opts.Collection.Collector != nil {
		s.work.Go(func() { s.collecting(ctx) })
	}
	return s
}

// Close ends what is under way in the background. The downloads of pulls that are left keep what they have.
func (s *Service) Close() error {
	s.stop()
	s.work.Wait()
	s.flights.close()
	return nil
}

func (s *Service) emit(action, id, name string, extra map[string]string) {
	attrs := map[string]string{"name": name}
	for k, v := range extra {
		attrs[k] = v
	}
	s.Events.Publish(events.Event{Type: "image", Action: action, ID: id, Attributes: attrs})
}

// List implements [API].
func (s *Service) List(ctx context.Context, opts ListOptions) ([]Summary, error) {
	f := opts.Filters
	if err := f.Accept("dangling", "label", "label!", "before", "since", "until", "reference"); err != nil {
		return nil, err
	}
	dangling, err := f.Bool("dangling", false)
	if err != nil {
		return nil, err
	}
	until, err := containers.Until(f)
	if err != nil {
		return nil, err
	}
	before, err := s.edge(ctx, f["before"])
	if err != nil {
		return nil, err
	}
	since, err := s.edge(ctx, f["since"])
	if err != nil {
		return nil, err
	}
	for _, pattern := range f["reference"] {
		if _, err := path.Match(pattern, ""); err != nil {
			return nil, errs.New(errs.Invalid, "invalid filter 'reference=%s': %w", pattern, err)
		}
	}
	all, err := s.Store.List(ctx)
	if err != nil {
		return nil, err
	}
	isDangling := s.dangling(ctx, all)
	var list []Summary
	for _, img := range all {
		made := created(img)
		switch {
		case f.Has("dangling") && dangling != isDangling(img.ID),
			!f.Labels("label", img.Config.Config.Labels), hasLabel(f["label!"], img.Config.Config.Labels),
			!before.IsZero() && !made.Before(before), !since.IsZero() && !made.After(since), !until.IsZero() && !made.Before(until):
			continue
		case !opts.All && !f.Has("dangling") && len(img.Tags)+len(img.Digests) == 0 && !isDangling(img.ID):
			continue // another platform of an image that is listed
		}
		if f.Has("reference") {
			img.Tags = slices.DeleteFunc(slices.Clone(img.Tags), func(tag string) bool { return !matches(f["reference"], tag) })
			img.Digests = slices.DeleteFunc(slices.Clone(img.Digests), func(name string) bool { return !matches(f["reference"], name) })
			if len(img.Tags)+len(img.Digests) == 0 {
				continue
			}
		}
		stopped, running := s.Containers.ImageUsers(img.ID)
		list = append(list, Summary{Image: img, Containers: len(stopped) + len(running), Dangling: isDangling(img.ID)})
	}
	slices.SortFunc(list, func(a, b Summary) int { return created(b.Image).Compare(created(a.Image)) })
	return list, nil
}

// dangling tells which images have no name that a person gave them.
func (s *Service) dangling(ctx context.Context, all []image.Image) func(digest.Digest) bool {
	if store, ok := s.Store.(interface {
		Dangling(ctx context.Context) func(digest.Digest) bool
	}); ok {
		return store.Dangling(ctx)
	}
	tagged := map[digest.Digest]bool{}
	for _, img := range all {
		tagged[img.ID] = len(img.Tags) > 0
	}
	return func(id digest.Digest) bool { return !tagged[id] }
}

func created(img image.Image) time.Time {
	if img.Config.Created == nil {
		return time.Time{}
	}
	return *img.Config.Created
}

func (s *Service) edge(ctx context.Context, refs []string) (time.Time, error) {
	var edge time.Time
	for _, ref := range refs {
		img, err := s.Store.Get(ctx, ref)
		if err != nil {
			return edge, err
		}
		edge = created(img)
	}
	return edge, nil
}

func hasLabel(wanted []string, labels map[string]string) bool {
	return slices.ContainsFunc(wanted, func(w string) bool { return (filter.Args{"l": {w}}).Labels("l", labels) })
}

// matches tells whether a name fits one of the patterns: the whole name, or the part before its tag or digest.
func matches(patterns []string, name string) bool {
	bare := name
	if at := strings.IndexByte(bare, '@'); at >= 0 {
		bare = bare[:at]
	} else if colon := strings.LastIndexByte(bare, ':'); colon > strings.LastIndexByte(bare, '/') {
		bare = bare[:colon]
	}
	for _, pattern := range patterns {
		if ref, err := reference.Parse(pattern); err == nil { // docker.io/library/x means x
			pattern = ref.Familiar()
		}
		for _, n := range []string{name, bare} {
			if ok, err := path.Match(pattern, n); err == nil && ok {
				return true
			}
		}
	}
	return false
}

// Inspect implements [API].
func (s *Service) Inspect(ctx context.Context, ref string) (image.Image, error) {
	return s.Store.Get(ctx, ref)
}

// History implements [API].
func (s *Service) History(ctx context.Context, ref string) ([]image.HistoryEntry, error) {
	return s.Store.History(ctx, ref)
}

// Tag implements [API].
func (s *Service) Tag(ctx context.Context, ref, name string) error {
	if err := s.Store.Tag(ctx, ref, name); err != nil {
		return err
	}
	if img, err := s.Store.Get(ctx, name); err == nil {
		if ref, err := reference.Parse(name); err == nil {
			name = ref.WithDefaultTag().Familiar()
		}
		s.emit("tag", img.ID.String(), name, img.Config.Config.Labels)
	}
	return nil
}

// Remove implements [API].
func (s *Service) Remove(ctx context.Context, ref string, force, prune bool) ([]image.Removed, error) {
	img, err := s.Store.Get(ctx, ref)
	if err != nil {
		return nil, err
	}
	removed, err := s.Store.Remove(ctx, ref, force, prune, s.Containers.ImageUsers)
	s.tellRemoved(img, removed)
	return removed, err
}

// RemoveFor implements [API].
func (s *Service) RemoveFor(ctx context.Context, ref string, p manifest.Platform, force bool) ([]image.Removed, error) {
	img, err := s.InspectFor(ctx, ref, p)
	if err != nil {
		return nil, err
	}
	removed, err := s.Store.RemoveFor(ctx, ref, p, force, s.Containers.ImageUsers)
	s.tellRemoved(img, removed)
	return removed, err
}

func (s *Service) tellRemoved(img image.Image, removed []image.Removed) {
	for _, r := range removed {
		switch {
		case r.Untagged != "":
			s.emit("untag", img.ID.String(), r.Untagged, img.Config.Config.Labels)
		case r.Deleted == img.ID.String():
			s.emit("delete", r.Deleted, r.Deleted, img.Config.Config.Labels)
		}
	}
}

// Prune implements [API]: images without a name, or with dangling=false all that no container stands on.
func (s *Service) Prune(ctx context.Context, filters filter.Args) (Pruned, error) {
	var pruned Pruned
	if err := filters.Accept("dangling", "label", "label!", "until"); err != nil {
		return pruned, err
	}
	onlyDangling, err := filters.Bool("dangling", true)
	if err != nil {
		return pruned, err
	}
	wanted := filter.Args{}
	for key, values := range filters {
		if key != "dangling" {
			wanted[key] = values
		}
	}
	list, err := s.List(ctx, ListOptions{All: true, Filters: wanted})
	if err != nil {
		return pruned, err
	}
	before, err := s.layers(ctx)
	if err != nil {
		return pruned, err
	}
	for _, sum := range list {
		if sum.Containers > 0 || onlyDangling && !sum.Dangling {
			continue
		}
		refs := append(slices.Clone(sum.Tags), sum.Digests...)
		if len(refs) == 0 {
			refs = []string{sum.ID.String()}
		}
		for _, ref := range refs {
			removed, err := s.Remove(ctx, ref, false, true) // never by force: a container may have come meanwhile
			pruned.Removed = append(pruned.Removed, removed...)
			if err != nil && !errors.Is(err, errs.Conflict) && !errors.Is(err, errs.NotFound) { // taken by a container, or removed, meanwhile
				return pruned, err
			}
		}
	}
	after, err := s.layers(ctx)
	if err != nil {
		return pruned, err
	}
	for chain, size := range before {
		if _, still := after[chain]; !still {
			pruned.Space += size
		}
	}
	if len(wanted) == 0 { // all that is of no use
		freed, err := s.pruneLeftovers(ctx)
		if pruned.Space += freed; err != nil {
			return pruned, err
		}
	}
	s.Events.Publish(events.Event{Type: "image", Action: "prune", Attributes: map[string]string{"reclaimed": strconv.FormatInt(pruned.Space, 10)}})
	return pruned, nil
}

// layers maps every chain of layers that an image has to the size of its topmost one.
func (s *Service) layers(ctx context.Context) (map[string]int64, error) {
	all, err := s.Store.List(ctx)
	if err != nil {
		return nil, err
	}
	sizes := map[string]int64{}
	for _, img := range all {
		entries, err := s.Store.History(ctx, img.ID.String())
		if err != nil {
			continue // removed meanwhile
		}
		chain, next := "", 0
		diffs := img.Config.RootFS.DiffIDs
		for i, h := range img.Config.History {
			if h.EmptyLayer || next >= len(diffs) || i >= len(entries) {
				continue
			}
			chain += diffs[next].String()
			sizes[chain] = entries[len(entries)-1-i].Size
			next++
		}
		if next == 0 && len(diffs) > 0 { // no history: the image as a whole
			for _, d := range diffs {
				chain += d.String()
			}
			sizes[chain] = img.Size
		}
	}
	return sizes, nil
}

// Load implements [API].
func (s *Service) Load(ctx context.Context, r io.Reader, wanted []manifest.Platform, progress image.Progress) ([]string, error) {
	names, err := s.Store.LoadFor(ctx, r, wanted, progress)
	s.grow()
	for _, name := range names {
		if img, gerr := s.Store.Get(ctx, name); gerr == nil {
			s.emit("load", img.ID.String(), name, img.Config.Config.Labels)
		}
	}
	return names, err
}

// Save implements [API].
func (s *Service) Save(ctx context.Context, refs []string, opts SaveOptions, w io.Writer) error {
	var err error
	switch {
	case len(opts.Platforms) == 0:
		err = s.Store.Save(ctx, refs, opts.Without, w)
	case len(opts.Without) > 0:
		err = errs.New(errs.Invalid, "conflicting options: an archive of one platform has all its layers")
	default:
		err = s.Store.SaveFor(ctx, refs, opts.Platforms, w)
	}
	if err != nil {
		return err
	}
	for _, ref := range refs {
		if img, err := s.Store.Get(ctx, ref); err == nil {
			s.emit("save", img.ID.String(), ref, img.Config.Config.Labels)
		}
	}
	return nil
}

// Have implements [API].
func (s *Service) Have(ctx context.Context, chains []snapshot.ChainID) ([]snapshot.ChainID, error) {
	have := []snapshot.ChainID{}
	for _, c := range chains {
		if err := c.Validate(); err != nil {
			return nil, errs.New(errs.Invalid, "chain %q is not a digest", string(c))
		}
		ok, err := s.Store.HasChain(ctx, c)
		if err != nil {
			return nil, err
		}
		if ok {
			have = append(have, c)
		}
	}
	return have, nil
}

// Import implements [API].
func (s *Service) Import(ctx context.Context, r io.Reader, opts image.ImportOptions) (image.Image, error) {
	img, err := s.Store.Import(ctx, r, opts)
	s.grow()
	if err != nil {
		return img, err
	}
	for _, name := range img.Tags {
		s.emit("tag", img.ID.String(), name, img.Config.Config.Labels)
	}
	s.emit("import", img.ID.String(), img.ID.String(), img.Config.Config.Labels)
	return img, nil
}
