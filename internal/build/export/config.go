package export

import (
	"context"
	"encoding/json"
	"maps"
	"slices"
	"time"

	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/build/solve"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/image"
	"corten.dev/corten/internal/snapshot"
)

// comment stands at what no instruction of the frontend accounts for. BuildKit's own word: tools look for it.
const comment = "buildkit.exporter.image.v0"

// inlineCacheKey is where a config carries the cache; buildInfoKey is what older frontends left, which is no longer kept.
const (
	inlineCacheKey = "moby.buildkit.cache.v0"
	buildInfoKey   = "moby.buildkit.buildinfo.v1"
)

const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// finish makes the config of a target what the image will have: layers, a history that accounts for each of them, and times. Fields that are not known here stay as they are.
// Equal results give equal bytes: the times of layers are those of the steps, or SOURCE_DATE_EPOCH.
func (x *exporting) finish(t *target, inline []byte) error {
	raw := t.given
	if raw == nil {
		raw = emptyConfig(t.platform)
	}
	fields := map[string]json.RawMessage{}
	var known struct {
		Created *time.Time      `json:"created"`
		History []image.History `json:"history"`
		OS      string          `json:"os"`
		Arch    string          `json:"architecture"`
	}
	for _, into := range []any{&fields, &known} {
		if err := json.Unmarshal(raw, into); err != nil {
			return errs.New(errs.Invalid, "config of the image: %w", err)
		}
	}
	made := make([]layerOrigin, len(t.layers))
	for i, l := range t.layers {
		made[i] = x.origin(l.Chain)
	}
	history := joinHistory(known.History, made)
	dateHistory(history, made, t.epoch, x.now)
	created := known.Created
	switch {
	case t.epoch != nil:
		created = t.epoch
	case created == nil && len(history) > 0:
		created = history[len(history)-1].Created
	case created == nil:
		now := x.now().UTC()
		created = &now
	}
	rootfs := image.RootFS{Type: "layers", DiffIDs: []digest.Digest{}}
	for _, l := range t.layers {
		rootfs.DiffIDs = append(rootfs.DiffIDs, l.DiffID)
	}
	set := map[string]any{"rootfs": rootfs, "history": history, "created": created}
	if known.OS == "" || known.Arch == "" {
		set["os"], set["architecture"] = t.platform.OS, t.platform.Architecture
		if t.platform.Variant != "" {
			set["variant"] = t.platform.Variant
		}
	}
	for name, value := range set {
		data, err := json.Marshal(value)
		if err != nil {
			return err
		}
		fields[name] = data
	}
	delete(fields, buildInfoKey)
	delete(fields, inlineCacheKey)
	if inline != nil {
		data, err := json.Marshal(inline)
		if err != nil {
			return err
		}
		fields[inlineCacheKey] = data
	}
	var err error
	if t.config, err = json.Marshal(fields); err != nil { // maps are written in the order of their keys
		return err
	}
	_, err = image.ParseConfig(t.config)
	return err
}

// emptyConfig is that of a result without one (raw LLB).
func emptyConfig(p ocispec.Platform) []byte {
	var img ocispec.Image
	img.Platform = p
	img.RootFS.Type = "layers"
	img.Config.WorkingDir = "/"
	img.Config.Env = []string{defaultPath}
	raw, err := json.Marshal(img)
	if err != nil {
		return []byte("{}") // plain strings cannot fail
	}
	return raw
}

// layerOrigin is when a layer was made, and by what. The zero time: it is not known.
type layerOrigin struct {
	made time.Time
	by   string
}

// origins finds out where the layers of a build's steps come from.
func (e *Exporter) origins(ctx context.Context, job Job) (map[snapshot.ChainID]layerOrigin, error) {
	all := map[snapshot.ChainID]layerOrigin{}
	if job.Walk == nil {
		return all, nil
	}
	note := func(step solve.Step) error {
		if step.Source {
			return nil
		}
		made, err := e.madeAt(ctx, step)
		for _, out := range step.Outputs {
			if old, known := all[out.Chain]; out.Chain != "" && (!known || made.Before(old.made)) {
				all[out.Chain] = layerOrigin{made, step.Vertex.Name}
			}
		}
		return err
	}
	ids := slices.Collect(maps.Keys(job.Result.Refs))
	if len(ids) == 0 {
		ids = []string{""}
	}
	for _, id := range ids {
		if err := job.Walk(id, note); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// madeAt is when a step was run: now, or when its record says.
func (e *Exporter) madeAt(ctx context.Context, step solve.Step) (time.Time, error) {
	if e.Records != nil && step.Key != "" {
		rec, ok, err := e.Records.Lookup(ctx, step.Key)
		same := func(out build.Output, chain snapshot.ChainID) bool { return out.Chain == chain }
		if ok && err == nil && !rec.Created.IsZero() && slices.EqualFunc(step.Outputs, rec.Outputs, same) {
			return rec.Created, nil
		}
		if err != nil {
			return time.Time{}, err
		}
	}
	return step.Completed, nil
}

func (x *exporting) origin(chain snapshot.ChainID) layerOrigin {
	if from, redone := x.again[chain]; redone {
		chain = from
	}
	return x.made[chain]
}

// joinHistory makes as many entries stand for layers as there are layers.
func joinHistory(given []image.History, layers []layerOrigin) []image.History {
	all := append([]image.History{}, given...)
	n := 0
	for i := range all {
		if all[i].EmptyLayer {
			continue
		}
		if n == len(layers) {
			all[i].EmptyLayer = true // a step that made none
			continue
		}
		n++
	}
	for _, l := range layers[n:] {
		all = append(all, image.History{CreatedBy: l.by, Comment: comment})
	}
	return all
}

// dateHistory gives each entry a time: that of its layer; entries without a layer have that of the new layer before them, those before the first new layer its time.
func dateHistory(history []image.History, layers []layerOrigin, epoch *time.Time, now func() time.Time) {
	n := 0
	var last, firstNew *time.Time
	for i := range history {
		h := &history[i]
		fresh := h.Created == nil
		if !h.EmptyLayer {
			if fresh && !layers[n].made.IsZero() {
				made := layers[n].made.UTC()
				h.Created = &made
			}
			n++
		}
		if fresh && firstNew == nil {
			firstNew = h.Created
		}
		if h.Created != nil {
			last = h.Created
		}
	}
	if firstNew == nil {
		firstNew = last // only words were added to the base image
	}
	if firstNew == nil {
		tm := now().UTC()
		firstNew = &tm
	}
	before := firstNew
	begun := false
	for i := range history {
		h := &history[i]
		if h.Created == nil {
			begun = true
			h.Created = before
		} else if begun || h.Created == firstNew {
			before = h.Created
		}
		if epoch != nil && h.Created.After(*epoch) {
			h.Created = epoch
		}
	}
}

// baseLayers counts the layers that a base image brought, by its config.
func baseLayers(config []byte, layers []snapshot.Layer) int {
	var base struct {
		RootFS struct {
			DiffIDs []digest.Digest `json:"diff_ids"`
		} `json:"rootfs"`
	}
	if config == nil || json.Unmarshal(config, &base) != nil {
		return 0
	}
	for i, diff := range base.RootFS.DiffIDs {
		if i == len(layers) || layers[i].DiffID != diff {
			return 0 // the tree stands on something else
		}
	}
	return len(base.RootFS.DiffIDs)
}

// finishAll finishes the configs of all platforms.
func (x *exporting) finishAll(ctx context.Context) error {
	if x.opts.nameOfResult {
		if err := readNames(x.opts, string(x.job.Result.Metadata[exptypes.ExporterImageNameKey])); err != nil {
			return err
		}
		if x.opts.push && len(x.opts.names) == 0 {
			return errs.New(errs.Invalid, "the frontend gave the image no name to push it by")
		}
	}
	for _, t := range x.targets {
		if x.opts.rewrite {
			if err := x.clamp(ctx, t); err != nil {
				return err
			}
		}
		var inline []byte
		if x.job.InlineCache != nil {
			var err error
			if inline, err = x.job.InlineCache(ctx, t.id, t.layers); err != nil {
				return err
			}
		}
		if err := x.finish(t, inline); err != nil {
			return err
		}
	}
	return nil
}
