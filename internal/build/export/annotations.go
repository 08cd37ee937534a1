package export

import (
	"maps"
	"slices"

	"github.com/containerd/platforms"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"

	"corten.dev/corten/internal/errs"
)

// notes are the annotations: those of the frontend first, so that the asker's win.
type notes []annotation

func (x *exporting) notes() (notes, error) {
	var all notes
	meta := x.job.Result.Metadata
	for _, name := range slices.Sorted(maps.Keys(meta)) {
		key, ok, err := exptypes.ParseAnnotationKey(name)
		if err != nil {
			return nil, errs.New(errs.Invalid, "annotation %s of the frontend: %w", name, err)
		}
		if ok {
			all = append(all, annotation{key, string(meta[name])})
		}
	}
	all = append(all, x.opts.annotations...)
	for _, a := range all {
		if a.Platform != nil && !slices.ContainsFunc(x.targets, func(t *target) bool { return a.matches(t) }) {
			return nil, errs.New(errs.Invalid, "annotation %s: the platform is not built", a)
		}
	}
	return all, nil
}

func (a annotation) matches(t *target) bool {
	return a.Platform == nil || t != nil && platforms.FormatAll(platforms.Normalize(*a.Platform)) == platforms.FormatAll(platforms.Normalize(t.platform))
}

// of are the annotations for one place; t is nil for what is about the whole. nil: none.
func (n notes) of(kind string, t *target) (all map[string]string) {
	for _, general := range []bool{true, false} { // those that name a platform win
		for _, a := range n {
			if a.Type != kind || general != (a.Platform == nil) || !a.matches(t) {
				continue
			}
			if all == nil {
				all = map[string]string{}
			}
			all[a.Key] = a.value
		}
	}
	return all
}

func (n notes) any(kind string) bool {
	return slices.ContainsFunc(n, func(a annotation) bool { return a.Type == kind })
}
