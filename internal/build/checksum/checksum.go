// Package checksum gives the content of files as digests: what a step's cache key is made of.
//
// A digest covers names, modes, owners, sizes, link targets, device numbers, xattrs and content of what a [pick.Selection] chooses, not times and not hard links. A chain of layers and a
// directory of equal content have equal digests.
//
// It owns <data-root>/builds/checksums; to lose it costs only time:
//
//	chains            digests of selections of chains, which never change, one fixed record after another
//	<key>.files       what is known of the directory with this Files.Key: for each name its stat(2) and its digest
//
// It promises that a file whose stat is as it was is not read again, and that a stat is trusted only when the file cannot have changed since without showing: its last change lies
// further back than the steps of the clock that files get their times from (what git calls racily clean is read again). Nothing but regular files and directories is opened, never
// through a link; what changes while it is read is digested as it was read, and not trusted afterwards.
package checksum

import (
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"weak"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/build/checksum/pick"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/snapshot"
)

// Viewer is what is needed of the store of layers.
type Viewer interface {
	View(ctx context.Context, chain snapshot.ChainID) (*snapshot.Mounted, error)
}

// Options describe Sums.
type Options struct {
	Dir   string // folder that is owned; made when missing
	Trees Viewer
	Log   *slog.Logger
}

// Sums takes checksums. All methods may be called concurrently.
type Sums struct {
	opts   Options
	log    *slog.Logger
	chains *chainResults
	later  sync.WaitGroup // files that are being written

	mu    sync.Mutex
	known map[string]*slot // by Files.Key
}

// slot is the tree of one Files.Key. Who has its turn may use it.
type slot struct {
	turn chan struct{} // of capacity 1
	uses int           // guarded by Sums.mu; a slot without users that holds nothing is forgotten
	kept weak.Pointer[known]
}

// New opens the folder.
func New(opts Options) (*Sums, error) {
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(opts.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("open checksums: %w", err)
	}
	s := &Sums{opts: opts, log: opts.Log, known: map[string]*slot{}}
	s.chains = openChains(path.Join(opts.Dir, "chains"), s.log)
	return s, nil
}

// Close waits for what is being written.
func (s *Sums) Close() error {
	s.later.Wait()
	return s.chains.close()
}

// Of is the digest of a selection of an output, whose layers must be here unless it was taken before.
func (s *Sums) Of(ctx context.Context, out build.Output, sel pick.Selection) (digest.Digest, error) {
	if out.Files != nil {
		return s.Files(ctx, out.Files, sel)
	}
	return s.Chain(ctx, out.Chain, sel)
}

// Cached is the digest of a selection of a chain if it was taken before; its layers need not be here.
func (s *Sums) Cached(chain snapshot.ChainID, sel pick.Selection) (digest.Digest, bool) {
	return s.chains.get(selectionKey(string(chain), sel))
}

// Chain is the digest of a selection of a chain. errs.NotFound when a path is not there that must be (the error names it), or the chain.
func (s *Sums) Chain(ctx context.Context, chain snapshot.ChainID, sel pick.Selection) (digest.Digest, error) {
	key := selectionKey(string(chain), sel)
	if dgst, ok := s.chains.get(key); ok {
		return dgst, nil
	}
	m, err := s.opts.Trees.View(ctx, chain)
	if err != nil {
		return "", fmt.Errorf("checksum of %s: %w", chain, err)
	}
	defer m.Close()
	tree, err := pick.New(m.Root, pick.View{})
	if err != nil {
		return "", err
	}
	dgst, err := (&known{}).digest(newRefresher(ctx, s.log, nil), tree, sel, nil)
	if err != nil {
		return "", err
	}
	s.chains.put(key, dgst)
	return dgst, nil
}

// Files is the digest of a selection of a directory as it is now. errs.NotFound when a path is not there that must be; the error names it.
func (s *Sums) Files(ctx context.Context, files *build.Files, sel pick.Selection) (digest.Digest, error) {
	root, err := Open(files)
	if err != nil {
		return "", err
	}
	defer root.Close()
	tree, err := pick.New(root, pick.View{Include: files.Include, Exclude: files.Exclude, Follow: files.Follow})
	if err != nil {
		return "", err
	}
	r := newRefresher(ctx, s.log, files.Owner)
	if files.Key == "" {
		return (&known{}).digest(r, tree, sel, nil) // nobody will know it again
	}
	sl, err := s.enter(ctx, files.Key)
	if err != nil {
		return "", err
	}
	defer s.leave(files.Key, sl)
	k := sl.kept.Value()
	if k == nil {
		k = s.load(files.Key)
		sl.kept = weak.Make(k)
	}
	key := Sum(selectionKey(tree.Resolved, sel))
	dgst, err := k.digest(r, tree, sel, &key)
	if r.changed.Load() || r.touched.Load() {
		s.save(files.Key, k)
	}
	return dgst, err
}

// Open gives a descriptor of the directory that is the caller's.
func Open(files *build.Files) (*os.File, error) {
	fd, err := unix.Openat(int(files.Root.Fd()), ".", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open build context: %w", err)
	}
	return os.NewFile(uintptr(fd), "build context"), nil
}

// enter waits until nobody else looks at the directory of this key: what the one finds out the next need not.
func (s *Sums) enter(ctx context.Context, key string) (*slot, error) {
	s.mu.Lock()
	sl := s.known[key]
	if sl == nil {
		sl = &slot{turn: make(chan struct{}, 1)}
		s.known[key] = sl
	}
	sl.uses++
	s.mu.Unlock()
	select {
	case sl.turn <- struct{}{}:
		return sl, nil
	case <-ctx.Done():
		s.drop(key, sl)
		return nil, ctx.Err()
	}
}

func (s *Sums) leave(key string, sl *slot) {
	<-sl.turn
	s.drop(key, sl)
}

// drop forgets a slot that nobody uses, unless the collector left what it held.
func (s *Sums) drop(key string, sl *slot) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sl.uses--
	for key, other := range s.known {
		if other.uses == 0 && other.kept.Value() == nil {
			delete(s.known, key)
		}
	}
}

// known is what is known of a directory.
type known struct {
	root    node
	results map[Sum]digest.Digest // digests of whole selections, as long as nothing changed
}

// maxResults bounds the selections of one directory that are remembered.
const maxResults = 256

// digest brings what is chosen up to date and gives its digest. key names the selection, for results; nil: they are not kept.
func (k *known) digest(r *refresher, tree *pick.Tree, sel pick.Selection, key *Sum) (digest.Digest, error) {
	matches, err := tree.Matches(sel)
	if err != nil {
		return "", err
	}
	defer func() {
		for _, m := range matches {
			m.Close()
		}
	}()
	if key != nil {
		h := sha256.New()
		h.Write(key[:])
		if r.owner != nil {
			fmt.Fprintf(h, "owner %d:%d\n", r.owner[0], r.owner[1])
		}
		for _, m := range matches {
			fmt.Fprintf(h, "%d %s %d %s\n", len(m.Name), m.Name, len(m.Real), m.Real)
		}
		h.Sum(key[:0])
	}
	for _, m := range matches {
		if err := k.refresh(r, m); err != nil {
			if r.changed.Load() {
				k.results = nil
			}
			return "", fmt.Errorf("checksum of %q: %w", path.Join("/", m.Path), err)
		}
	}
	if r.changed.Load() {
		k.results = nil
	}
	if key != nil {
		if dgst, ok := k.results[*key]; ok {
			return dgst, nil
		}
	}
	dgst, err := k.fold(matches, sel)
	if err == nil && key != nil {
		r.touched.Store(true)
		if k.results == nil || len(k.results) >= maxResults {
			k.results = map[Sum]digest.Digest{}
		}
		k.results[*key] = dgst
	}
	return dgst, err
}

// refresh brings one match up to date.
func (k *known) refresh(r *refresher, m *pick.Match) error {
	n, err := k.find(r, m)
	if err != nil {
		return err
	}
	if m.IsDir() {
		return r.dir(m.Fd, n, m.At, 0)
	}
	if n.known && n.settled && n.same(&m.Stat) {
		return nil
	}
	return r.examine(m.Parent, n, &m.Stat)
}

// find gives the node of a match, made when missing. The pointer is good until the next call.
func (k *known) find(r *refresher, m *pick.Match) (*node, error) {
	n := &k.root
	if m.Real == "" {
		return n, nil
	}
	parts := strings.Split(m.Real, "/")
	for i, part := range parts {
		at, ok := n.search(part)
		if !ok && i == len(parts)-1 && len(n.kids) >= 16 {
			// Another one of many that a pattern matched: all names at once are less work than one after another.
			var st unix.Stat_t
			if err := r.relist(m.Parent, n, &st); err != nil {
				return nil, err
			}
			at, ok = n.search(part)
		}
		if !ok {
			n.listed = false
			n.kids = slices.Insert(n.kids, at, node{name: cstring(part)})
		}
		n = &n.kids[at]
	}
	return n, nil
}

func (n *node) search(name string) (int, bool) {
	return slices.BinarySearchFunc(n.kids, name, func(kid node, name string) int { return strings.Compare(kid.name, name) })
}

func (k *known) fold(matches []*pick.Match, sel pick.Selection) (digest.Digest, error) {
	var paths []string
	var seen func(string)
	if len(sel.Required) > 0 {
		seen = func(path string) { paths = append(paths, path) }
	}
	var kids []Kid
	for _, m := range matches {
		n := &k.root
		for _, part := range strings.Split(m.Real, "/") {
			if m.Real == "" {
				break
			}
			at, ok := n.search(part)
			if !ok {
				n = nil
				break
			}
			n = &n.kids[at]
		}
		if n == nil {
			continue
		}
		sum, ok := fold(n, m.At, sel.Contents && m.IsDir(), seen, strings.TrimSuffix("/"+m.Path, "/"))
		if !ok {
			continue
		}
		kids = append(kids, Kid{m.Name, sum})
	}
	for _, want := range sel.Required {
		if !slices.ContainsFunc(paths, func(p string) bool { return strings.HasPrefix(p, path.Join("/", want)) }) {
			return "", errs.New(errs.NotFound, "%q: not found", path.Join("/", want))
		}
	}
	if len(kids) == 0 && !(sel.Wildcard && pick.HasWildcards(sel.Path)) {
		return "", errs.New(errs.NotFound, "%q: not found", path.Join("/", sel.Path))
	}
	return Selected(kids), nil
}

// selectionKey names a selection of something.
func selectionKey(of string, sel pick.Selection) (sum Sum) {
	h := sha256.New()
	fmt.Fprintf(h, "1 %q %q %t %t %t %q %q %q", of, sel.Path, sel.Wildcard, sel.Follow, sel.Contents, sel.Include, sel.Exclude, sel.Required)
	h.Sum(sum[:0])
	return sum
}
