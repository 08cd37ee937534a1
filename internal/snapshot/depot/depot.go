// Package depot keeps layers and writable trees on disk for the snapshot drivers: their records, their ids, how they are published
// and how they go away. What is inside of a tree's folder, and how a layer's tar becomes files, is the driver's part.
//
// It owns the folder it is opened on:
//
//	layers/<id>/layer.json   chain, parent, diff id, size
//	           /tree/        the files
//	           /tar.zst      what tarfs.Assemble needs to write the layer's tar again
//	           /kept/        files that the tar itself replaced
//	trees/<id>/tree.json     key, chain, labels; written last: a folder without it was never finished
//	          /…             the driver's
//	new/<id>/                a layer that is being written
//	trash/<id>/              what is being deleted
//	lost/<id>/               what the start-up check could not read but did not dare to delete
//	empty/{a,b}              two empty directories
//	holds                    the holds, see holds.go
//	flushed                  how far relaxed layers are on the disk, see rounds.go
//
// Ids are short numbers in base 36, because paths of layers go into mount options of bounded length.
//
// It promises: a layer is flushed before it is renamed into layers/, so what is there is whole, unless its record says that it is relaxed; whatever a killed process left in new/
// and trash/ is deleted at the next start; the lock covers the maps only.
package depot

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"sync"

	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/linux/spread"
	"corten.dev/corten/internal/snapshot"
)

// Depot is an open folder of layers and trees. Its methods may be called concurrently.
type Depot struct {
	root string
	log  *slog.Logger
	// where trees, and what is in the making, are made
	inTrees, inNew *spread.Folder

	// mu guards everything below, and is never held over file system work.
	mu      sync.Mutex
	next    uint64
	layers  map[snapshot.ChainID]*layer
	trees   map[string]*tree
	flights map[snapshot.ChainID]chan struct{} // closed when the one who unpacks this chain is done
	work    map[digest.Digest]*work            // the diffs that are being unpacked, whatever they stand on
	byDiff  map[digest.Digest][]*layer
	holds   map[string]*layer
	coming  map[string]snapshot.ChainID // holds on layers that are about to get their places
	rounds  rounds
	trash   trash
	counts  counts
	pledges pledges
	enc     sync.Pool // of *zstd.Encoder
}

// layer is a committed layer. uses counts the layers, trees, holds and calls that need it; kept those of them that are layers and holds.
type layer struct {
	snapshot.Layer
	id    string
	form  form
	uses  int
	kept  int
	round uint64 // of a relaxed layer; 0: durable
}

// form is what is known about how a layer's files came to be.
type form struct {
	// Free: the files do not depend on what is below, so they are right on any parent.
	Free bool `json:",omitempty"`
	// Root: the tar described the root directory; else its attributes are the parent's.
	Root bool `json:",omitempty"`
}

// tree is a writable tree. While busy is set, it is being made or removed and nobody else may touch it.
type tree struct {
	treeFile
	id   string
	busy bool
}

const (
	layersDir = "layers"
	treesDir  = "trees"
	newDir    = "new"
	trashDir  = "trash"
	lostDir   = "lost"
	emptyDir  = "empty"

	layerRecord = "layer.json"
	treeRecord  = "tree.json"
	frames      = "tar.zst"
	keptDir     = "kept"
	// TreeDir is the folder of a layer's files inside of the layer's own folder.
	TreeDir = "tree"
)

// Open makes or opens the folder, checks what is there and starts to delete leftovers.
func Open(root string, log *slog.Logger) (*Depot, error) {
	root, err := filepath.Abs(root)
	if err != nil {
		return nil, err
	}
	for _, dir := range []string{layersDir, treesDir, newDir, trashDir, emptyDir + "/a", emptyDir + "/b"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o711); err != nil {
			return nil, err
		}
	}
	inTrees, terr := spread.Below(filepath.Join(root, treesDir))
	inNew, nerr := spread.Below(filepath.Join(root, newDir))
	if err := errors.Join(terr, nerr); err != nil {
		log.Warn("trees are kept near each other, which can be slow", "error", err)
	}
	d := &Depot{root: root, log: log, inTrees: inTrees, inNew: inNew, layers: map[snapshot.ChainID]*layer{}, trees: map[string]*tree{}, flights: map[snapshot.ChainID]chan struct{}{},
		work: map[digest.Digest]*work{}, byDiff: map[digest.Digest][]*layer{}, holds: map[string]*layer{}, coming: map[string]snapshot.ChainID{}}
	d.openRounds()
	d.counts.known, d.counts.asked = map[string]counted{}, map[string]bool{}
	d.counts.ctx, d.counts.stop = context.WithCancel(context.Background())
	if err := d.loadLayers(); err != nil {
		return nil, err
	}
	if err := d.loadTrees(); err != nil {
		return nil, err
	}
	if err := d.loadHolds(); err != nil {
		return nil, err
	}
	for _, dir := range []string{newDir, trashDir} {
		left, err := os.ReadDir(filepath.Join(root, dir))
		if err != nil {
			return nil, err
		}
		for _, e := range left {
			d.takeID(e.Name())
			d.delete(filepath.Join(root, dir, e.Name()))
		}
	}
	if lost, err := os.ReadDir(filepath.Join(root, lostDir)); err == nil {
		for _, e := range lost {
			d.takeID(e.Name())
		}
	}
	return d, nil
}

// Close waits a moment for deletions that are under way, ends counting, and flushes: an end in order loses nothing.
func (d *Depot) Close() error {
	d.counts.stop()
	d.counts.done.Wait()
	d.trash.stop()
	return errs.Also(d.Flush(context.Background()), d.pledges.journal.Close())
}

// Root is the folder.
func (d *Depot) Root() string { return d.root }

// Empty are two directories with nothing in them.
func (d *Depot) Empty() (a, b string) {
	return filepath.Join(d.root, emptyDir, "a"), filepath.Join(d.root, emptyDir, "b")
}

func (d *Depot) newID() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.next++
	return formatID(d.next)
}

// takeID keeps the counter ahead of every id on disk.
func (d *Depot) takeID(id string) {
	if n, err := strconv.ParseUint(id, 36, 63); err == nil && n > d.next {
		d.next = n
	}
}

type layerFile struct {
	Chain   digest.Digest
	Parent  digest.Digest `json:",omitempty"`
	DiffID  digest.Digest
	Size    int64
	TarSize int64
	// Files is the id of the layer whose files these were first; empty for the layer's own. Not a reference: that layer may be gone.
	Files string `json:",omitempty"`
	// Boot and Round are those of a relaxed layer.
	Boot  string `json:",omitempty"`
	Round uint64 `json:",omitempty"`
	form
}

func (rec layerFile) layer(id string) *layer {
	l := &layer{Layer: snapshot.Layer{Chain: rec.Chain, Parent: rec.Parent, DiffID: rec.DiffID, Size: rec.Size, TarSize: rec.TarSize, Files: rec.Files}, id: id, form: rec.form, round: rec.Round}
	if l.Files == "" {
		l.Files = id
	}
	return l
}

// put makes a layer known. It needs mu, or to be alone.
func (d *Depot) put(l *layer) {
	d.layers[l.Chain] = l
	d.byDiff[l.DiffID] = append(d.byDiff[l.DiffID], l)
}

// forget is the contrary of put.
func (d *Depot) forget(l *layer) {
	delete(d.layers, l.Chain)
	rest := slices.DeleteFunc(d.byDiff[l.DiffID], func(o *layer) bool { return o == l })
	if d.byDiff[l.DiffID] = rest; len(rest) == 0 {
		delete(d.byDiff, l.DiffID)
	}
}

type treeFile struct {
	Key    string
	Labels map[string]string `json:",omitempty"`
	Asked
}

// Asked is how a tree was asked for, in the words of [snapshot.Options].
type Asked struct {
	Chain    snapshot.ChainID `json:",omitempty"`
	Durable  bool             `json:",omitempty"`
	Bare     bool             `json:",omitempty"`
	Skeleton string           `json:",omitempty"`
	Shared   bool             `json:",omitempty"`
	Size     int64            `json:",omitempty"`
	Label    string           `json:",omitempty"`
}

func (d *Depot) loadLayers() error {
	dirs, err := os.ReadDir(filepath.Join(d.root, layersDir))
	if err != nil {
		return err
	}
	for _, e := range dirs {
		d.takeID(e.Name())
		path := filepath.Join(d.root, layersDir, e.Name())
		var rec layerFile
		err := readRecord(filepath.Join(path, layerRecord), &rec)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, errEmpty) {
			// A durable layer was flushed before it got here: this was a relaxed one, and the host went down.
			d.log.Warn("relaxed layer was not flushed before the host went down, deleted", "id", e.Name())
			d.delete(path)
			continue
		}
		if err != nil || rec.Chain == "" || rec.DiffID == "" {
			d.setAside(path, err)
			continue
		}
		if !d.whole(rec) {
			d.log.Warn("relaxed layer was not flushed before the host went down, deleted", "chain", rec.Chain, "id", e.Name())
			d.delete(path)
			continue
		}
		if _, double := d.layers[rec.Chain]; double {
			d.log.Warn("layer is there twice, deleting one", "chain", rec.Chain, "id", e.Name())
			d.delete(path)
			continue
		}
		d.put(rec.layer(e.Name()))
	}
	d.dropOrphans()
	for _, l := range d.layers {
		if p := d.layers[l.Parent]; p != nil {
			p.uses++
			p.kept++
		}
	}
	return nil
}

// dropOrphans deletes the layers that were not flushed and whose parents are gone. A durable one was flushed together with what it stands on: that it has no parent is damage, and it stays
// for a person to look at.
func (d *Depot) dropOrphans() {
	for again := true; again; {
		again = false
		for _, l := range d.layers {
			if l.Parent == "" || d.layers[l.Parent] != nil || d.rounds.durable(l.round) {
				continue
			}
			d.log.Warn("relaxed layer has lost its parent, deleted", "chain", l.Chain, "parent", l.Parent)
			d.forget(l)
			d.delete(filepath.Join(d.root, layersDir, l.id))
			again = true
		}
	}
	for _, l := range d.layers {
		if l.Parent != "" && d.layers[l.Parent] == nil {
			d.log.Error("layer has lost its parent", "chain", l.Chain, "parent", l.Parent)
		}
	}
}

func (d *Depot) loadTrees() error {
	dirs, err := os.ReadDir(filepath.Join(d.root, treesDir))
	if err != nil {
		return err
	}
	for _, e := range dirs {
		d.takeID(e.Name())
		path := filepath.Join(d.root, treesDir, e.Name())
		var rec treeFile
		err := readRecord(filepath.Join(path, treeRecord), &rec)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, errEmpty) {
			// Never finished; or the host went down under a tree that was not asked to be durable.
			d.delete(path)
			continue
		}
		if err == nil && (rec.Key == "" || d.trees[rec.Key] != nil) {
			err = fmt.Errorf("key %q is empty or there twice", rec.Key)
		}
		if err != nil {
			d.setAside(path, err)
			continue
		}
		d.trees[rec.Key] = &tree{treeFile: rec, id: e.Name()}
		if rec.Chain == "" {
			continue
		}
		if l := d.layers[rec.Chain]; l != nil {
			l.uses++
		} else {
			d.log.Error("writable tree has lost its layer", "key", rec.Key, "chain", rec.Chain)
		}
	}
	return nil
}

// setAside moves a folder to lost/, where a person may look at it.
func (d *Depot) setAside(path string, why error) {
	to := filepath.Join(d.root, lostDir, filepath.Base(path))
	err := os.MkdirAll(filepath.Dir(to), 0o700)
	if err == nil {
		err = os.Rename(path, to)
	}
	d.log.Error("snapshot record cannot be read, set aside", "from", path, "to", to, "why", why, "error", err)
}

var errEmpty = errors.New("record is empty")

func readRecord(path string, rec any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if len(bytes.Trim(data, "\x00")) == 0 {
		return errEmpty // some file systems leave zeros where data was not flushed
	}
	return json.Unmarshal(data, rec)
}

// Stat returns a layer.
func (d *Depot) Stat(_ context.Context, chain snapshot.ChainID) (snapshot.Layer, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	l := d.layers[chain]
	if l == nil {
		return snapshot.Layer{}, noLayer(chain)
	}
	return l.Layer, nil
}

func noLayer(chain snapshot.ChainID) error {
	return errs.New(errs.NotFound, "layer %s: not found", chain)
}

func noTree(key string) error { return errs.New(errs.NotFound, "tree %s: not found", key) }

// ByDiff is snapshot.Store's ByDiff.
func (d *Depot) ByDiff(_ context.Context, diff digest.Digest) (snapshot.Layer, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if all := d.byDiff[diff]; len(all) > 0 {
		return all[0].Layer, nil
	}
	return snapshot.Layer{}, errs.New(errs.NotFound, "no layer with the diff id %s", diff)
}

// Layers lists the committed layers, sorted by chain id.
func (d *Depot) Layers(_ context.Context) ([]snapshot.Layer, error) {
	d.mu.Lock()
	all := make([]snapshot.Layer, 0, len(d.layers))
	for _, l := range d.layers {
		all = append(all, l.Layer)
	}
	d.mu.Unlock()
	sort.Slice(all, func(i, j int) bool { return all[i].Chain < all[j].Chain })
	return all, nil
}

// Chain returns the folders of a chain's layers, topmost first. The empty chain has none.
func (d *Depot) Chain(chain snapshot.ChainID) ([]string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var dirs []string
	for chain != "" {
		l := d.layers[chain]
		if l == nil {
			return nil, noLayer(chain)
		}
		dirs = append(dirs, d.layerTree(l.id))
		chain = l.Parent
	}
	return dirs, nil
}

func (d *Depot) layerTree(id string) string {
	return d.root + "/" + layersDir + "/" + id + "/" + TreeDir
}

func formatID(n uint64) string { return strconv.FormatUint(n, 36) }
