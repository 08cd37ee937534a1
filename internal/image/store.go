package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/content"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/image/recipe"
	"corten.dev/corten/internal/manifest"
	"corten.dev/corten/internal/reference"
	"corten.dev/corten/internal/snapshot"
)

// Blobs is what the room needs of the content room, all of it on one store: split, every user would need both halves.
type Blobs interface {
	Put(ctx context.Context, want digest.Digest, size int64, r io.Reader) (content.Info, error)
	Read(ctx context.Context, dgst digest.Digest, limit int64) ([]byte, error)
	Delete(ctx context.Context, dgst digest.Digest) error
	List(ctx context.Context, fn func(content.Info) error) error
	Open(ctx context.Context, dgst digest.Digest) (*os.File, content.Info, error)
	Stat(ctx context.Context, dgst digest.Digest) (content.Info, error)
	Usage() (content.Usage, error)
	CollectIngests(before time.Time) ([]content.Info, error)
}

// Options describe a store.
type Options struct {
	Root      string // folder that the store owns
	Snapshots snapshot.Store
	Content   Blobs
	Logger    *slog.Logger
	// Platform is "os/arch[/variant]", for choosing from an index; empty is the one of this process.
	Platform string
	// KeepBlobs says what becomes of the compressed blobs of pulled layers: "auto" (or empty) keeps those that cannot be made again bit for bit,
	// "always" all, "never" none.
	KeepBlobs string
	// Limits bound what may be pulled and loaded.
	Limits Limits
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

// Images is the store: all parsed configs in memory, one index file on disk.
//
//	images.json   ids and names; rewritten aside, flushed and renamed with each change
//	used.json     when images were used last; written now and then, never flushed
//	forms/        the compressed forms of layers (see forms)
//	load-…        unnamed while in use: an archive that is being loaded
//
// The config blobs are in the content room, the layers in the snapshot room. An image is added in the order layers, config, index, and removed
// in the other order, so that the index never names what is not there; what is there without being named goes away at start.
type Images struct {
	root     string
	snaps    snapshot.Store
	blobs    Blobs
	log      *slog.Logger
	platform manifest.Platform
	now      func() time.Time
	keep     string
	limits   Limits
	// compressors are those that recipes have to hold for.
	compressors string
	forms       *forms
	keeper      *keeper
	uses        *uses
	busy        atomic.Int64 // calls that bring images in or out: the keeper stands still meanwhile

	mu    sync.RWMutex // guards byID, names, indexes, artifacts and known
	byID  map[digest.Digest]*entry
	names map[string]digest.Digest // full name with tag, or with digest, to id
	known map[digest.Digest]nameSet
	// indexes: full name to the index that it was pulled or pushed as; the name itself leads to one of its images.
	indexes map[string]digest.Digest
	// artifacts: of such an index, the manifests and blobs of what it lists beside images.
	artifacts map[digest.Digest][]digest.Digest
	commit    sync.Mutex // one change of the index file at a time; taken before mu
	gate      gate
}

var _ Store = (*Images)(nil)

// entry is an image in memory. It is never changed; a change puts a new one in its place.
type entry struct {
	id     digest.Digest
	cfg    Config
	raw    []byte
	chains []snapshot.ChainID // lowest first
	sizes  []int64            // of the layers
	tagged time.Time
	// manifests that the image came with or was pushed as, blobs in the content room; latest first.
	manifests []digest.Digest
}

func (e *entry) chain() snapshot.ChainID {
	if len(e.chains) == 0 {
		return ""
	}
	return e.chains[len(e.chains)-1]
}

func (e *entry) size() (sum int64) {
	for _, n := range e.sizes {
		sum += n
	}
	return sum
}

// maxConfig bounds a config or manifest blob.
const maxConfig = 8 << 20

const indexFile = "images.json"

// indexRecord is the index file. Fields are only ever added, so that the store of any earlier version opens.
type indexRecord struct {
	Images  []imageRecord
	Names   map[string]digest.Digest
	Indexes map[string]digest.Digest `json:",omitempty"`
	// Artifacts: what the indexes list beside images, manifests and blobs.
	Artifacts map[digest.Digest][]digest.Digest `json:",omitempty"`
}

type imageRecord struct {
	ID        digest.Digest
	Tagged    time.Time
	Manifests []digest.Digest `json:",omitempty"`
}

// New opens the store and checks what it finds. An image whose config or layers are missing is taken out, with a line in the log.
func New(opts Options) (*Images, error) {
	s := &Images{root: opts.Root, snaps: opts.Snapshots, blobs: opts.Content, log: opts.Logger, now: opts.Now,
		byID: map[digest.Digest]*entry{}, names: map[string]digest.Digest{}, indexes: map[string]digest.Digest{}, artifacts: map[digest.Digest][]digest.Digest{}, keep: opts.KeepBlobs, limits: opts.Limits.withDefaults(), compressors: recipe.Compressors()}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.now == nil {
		s.now = time.Now
	}
	if opts.Platform == "" {
		opts.Platform = runtime.GOOS + "/" + runtime.GOARCH
	}
	var err error
	if s.keep, err = parseKeep(s.keep); err != nil {
		return nil, err
	}
	if s.platform, err = manifest.ParsePlatform(opts.Platform); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(s.root, 0o700); err != nil {
		return nil, fmt.Errorf("open images: %w", err)
	}
	s.gate.sweep = s.sweepLoose
	if s.forms, err = openForms(filepath.Join(s.root, "forms"), s.log); err != nil {
		return nil, fmt.Errorf("open images: %w", err)
	}
	s.uses = openUses(s.root, func(err error) { s.log.Warn("images", "error", err) })
	if err := s.load(context.Background()); err != nil {
		return nil, fmt.Errorf("open images: %w", err)
	}
	s.keeper = newKeeper(s)
	return s, nil
}

// Close ends what goes on in the background. What it was at goes on with the next start.
func (s *Images) Close() error {
	s.keeper.close()
	s.uses.close()
	return s.forms.dir.Close()
}

func (s *Images) load(ctx context.Context) error {
	rec, whole, err := s.readIndex()
	if err != nil {
		return err
	}
	for _, r := range rec.Images {
		raw, err := s.blobs.Read(ctx, r.ID, maxConfig)
		var e *entry
		if err == nil {
			e, err = s.newEntry(ctx, r.ID, raw, r.Tagged)
		}
		if err == nil {
			e.manifests = r.Manifests
		}
		if err != nil {
			whole = false
			s.log.Error("image is not complete, left out", "image", r.ID, "error", err)
			continue
		}
		s.byID[r.ID] = e
	}
	for name, id := range rec.Names {
		if s.byID[id] != nil {
			s.names[name] = id
		}
	}
	for name, idx := range rec.Indexes {
		if s.names[name] != "" {
			s.indexes[name] = idx
			if parts := rec.Artifacts[idx]; len(parts) > 0 {
				s.artifacts[idx] = parts
			}
		}
	}
	s.known = nameSets(s.names)
	left, _ := filepath.Glob(filepath.Join(s.root, indexFile+".*.tmp"))
	for _, path := range left {
		_ = os.Remove(path) // of a killed process; harmless when it stays
	}
	if !whole {
		s.log.Warn("layers without an image are kept this time, because the image index was not whole")
		return nil
	}
	layers, err := s.snaps.Layers(ctx)
	if err != nil {
		return err
	}
	configs, err := s.looseConfigs(ctx)
	if err != nil {
		return err
	}
	s.gate.begin()
	for _, l := range layers {
		s.gate.candidate(loose{name: l.Chain})
	}
	for _, diff := range s.forms.diffs() {
		s.gate.candidate(loose{form: true, name: diff})
	}
	for _, id := range configs {
		s.gate.candidate(loose{config: true, name: id})
	}
	s.gate.end()
	return nil
}

// looseConfigs finds configs, manifests and indexes that no image has: a process was killed between storing the blob and writing the index. Other kinds of blobs
// are none of our business.
func (s *Images) looseConfigs(ctx context.Context) (ids []digest.Digest, err error) {
	const likely = 256 << 10
	live := s.Live()
	kept := map[digest.Digest]bool{}
	s.forms.each(func(_ digest.Digest, f form) { kept[f.Digest] = true })
	err = s.blobs.List(ctx, func(info content.Info) error {
		if live(info.Digest) || kept[info.Digest] || info.Size > likely {
			return nil
		}
		raw, err := s.blobs.Read(ctx, info.Digest, likely)
		if err != nil {
			s.log.Warn("blob cannot be read", "digest", info.Digest, "error", err)
			return nil
		}
		if _, err := ParseConfig(raw); err == nil {
			ids = append(ids, info.Digest)
		} else if _, err := manifest.Parse("", raw); err == nil {
			ids = append(ids, info.Digest)
		}
		return nil
	})
	return ids, err
}

// readIndex reads the index. whole is false when there was one that cannot be read: as long as that lies there, nobody knows which layers
// it named.
func (s *Images) readIndex() (rec indexRecord, whole bool, err error) {
	path := filepath.Join(s.root, indexFile)
	lost := path + ".lost"
	_, err = os.Stat(lost)
	whole = errors.Is(err, os.ErrNotExist)
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return rec, whole, nil
	}
	if err != nil {
		return rec, false, err
	}
	if err := json.Unmarshal(data, &rec); err != nil {
		s.log.Error("image index cannot be read, set aside", "to", lost, "error", err)
		return indexRecord{}, false, os.Rename(path, lost)
	}
	return rec, whole, nil
}

// newEntry parses a config and looks its layers up.
func (s *Images) newEntry(ctx context.Context, id digest.Digest, raw []byte, tagged time.Time) (*entry, error) {
	cfg, err := ParseConfig(raw)
	if err != nil {
		return nil, err
	}
	e := &entry{id: id, cfg: cfg, raw: raw, tagged: tagged}
	var chain snapshot.ChainID
	for _, diff := range cfg.RootFS.DiffIDs {
		chain = snapshot.ChainOf(chain, diff)
		l, err := s.snaps.Stat(ctx, chain)
		if err != nil {
			return nil, err
		}
		e.chains = append(e.chains, chain)
		e.sizes = append(e.sizes, l.Size)
	}
	return e, nil
}

// add stores the config and gives the image its names, and the manifest it came with if there was one. The layers must be there and held by the gate.
func (s *Images) add(ctx context.Context, raw []byte, refs []reference.Ref, manifests ...digest.Digest) (*entry, error) {
	if err := s.snaps.Flush(ctx); err != nil { // a build may have made some of them
		return nil, err
	}
	info, err := s.blobs.Put(ctx, "", int64(len(raw)), readerOf(raw))
	if err != nil {
		return nil, err
	}
	e, err := s.newEntry(ctx, info.Digest, raw, s.now())
	if err != nil {
		return nil, err
	}
	err = s.change(func(t *table) error {
		if old := t.byID[e.id]; old != nil {
			e.manifests = old.manifests
			if len(refs) == 0 {
				e.tagged = old.tagged
			}
		}
		for _, m := range manifests {
			e.came(m)
		}
		t.byID[e.id] = e
		for _, r := range refs {
			t.name(r, e.id)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return e, nil
}

// maxManifests bounds how many manifests of one image are remembered.
const maxManifests = 32

// came notes that the image has this manifest. e must not be visible to others yet.
func (e *entry) came(m digest.Digest) {
	rest := slices.DeleteFunc(slices.Clone(e.manifests), func(o digest.Digest) bool { return o == m })
	e.manifests = append([]digest.Digest{m}, rest[:min(len(rest), maxManifests-1)]...)
}

// Get finds an image.
func (s *Images) Get(_ context.Context, ref string) (Image, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	e, err := s.find(ref)
	if err != nil {
		return Image{}, err
	}
	return s.describe(e), nil
}

// List lists all images, newest first.
func (s *Images) List(_ context.Context) ([]Image, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	all := make([]Image, 0, len(s.byID))
	for _, e := range s.byID {
		all = append(all, s.describe(e))
	}
	sort.Slice(all, func(i, j int) bool {
		a, b := created(all[i]), created(all[j])
		if !a.Equal(b) {
			return a.After(b)
		}
		return all[i].ID < all[j].ID
	})
	return all, nil
}

func created(img Image) time.Time { return createdAt(img.Config) }

func createdAt(cfg Config) time.Time {
	if cfg.Created == nil {
		return time.Time{}
	}
	return *cfg.Created
}

// describe builds the value for callers, who must not change what is inside. It needs mu.
func (s *Images) describe(e *entry) Image {
	n := s.known[e.id]
	return Image{ID: e.id, Config: e.cfg, Raw: e.raw, Chain: e.chain(), Tags: slices.Clone(n.tags), Digests: slices.Clone(n.digests), Size: e.size(), Tagged: e.tagged, Used: s.uses.get(e.id)}
}

// nameSet are the familiar names of one image, sorted.
type nameSet struct{ tags, digests []string }

// nameSets is done with each change, so that looking an image up does not depend on how many there are.
func nameSets(names map[string]digest.Digest) map[digest.Digest]nameSet {
	all := map[digest.Digest]nameSet{}
	for name, id := range names {
		r, err := reference.Parse(name)
		if err != nil {
			continue
		}
		n := all[id]
		if r.Digest != "" {
			n.digests = append(n.digests, r.Familiar())
		} else {
			n.tags = append(n.tags, r.Familiar())
		}
		all[id] = n
	}
	for _, n := range all {
		sort.Strings(n.tags)
		sort.Strings(n.digests)
	}
	return all
}

// Tag gives an image another name; a name that is taken moves. What was brought in with all its platforms has all of them under the other name, too.
func (s *Images) Tag(_ context.Context, ref, name string) error {
	to, err := reference.Parse(name)
	if err != nil {
		return err
	}
	if to.Digest != "" {
		return errs.New(errs.Invalid, "refusing to create a tag with a digest reference")
	}
	to = to.WithDefaultTag()
	s.mu.RLock()
	e, err := s.find(ref)
	nameless := s.nameless(ref)
	s.mu.RUnlock()
	if err != nil {
		return err
	}
	return s.change(func(t *table) error {
		old := t.byID[e.id]
		if old == nil {
			return noImage(ref)
		}
		again := *old
		again.tagged = s.now()
		t.byID[e.id] = &again
		var index digest.Digest
		if from, err := reference.Parse(ref); err == nil && t.names[from.WithDefaultTag().String()] == e.id { // not an id
			index = t.indexes[from.WithDefaultTag().String()]
		} else {
			index = t.indexes[nameless]
		}
		t.name(to, e.id)
		if index != "" {
			t.indexes[to.String()] = index
		}
		return nil
	})
}
