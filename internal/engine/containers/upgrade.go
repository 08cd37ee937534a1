package containers

import (
	"context"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"time"

	"corten.dev/corten/internal/container"
	"corten.dev/corten/internal/image"
)

// UpgradeRequest asks for another image under a container.
type UpgradeRequest struct {
	Image  string        // empty: what its image's name means now
	Grace  time.Duration // how long one without a health check must run to have proved itself; 0: ten seconds
	DryRun bool
}

// Upgrade puts another image under a container: same name, id, settings, volumes and addresses, a new file tree. What the container was given by its old image it gets from the new one; what
// somebody asked for stays. A container that runs has to prove itself on the new image, else it runs on the old one again, with the tree that it had.
func (s *Service) Upgrade(ctx context.Context, ref string, req UpgradeRequest) (Edited, error) {
	ctx = context.WithoutCancel(ctx)
	ctr, done, err := s.toEdit(ctx, ref)
	if err != nil {
		return Edited{}, err
	}
	defer done()
	rec := *ctr.record()
	img, err := s.upgradeTo(ctx, &rec, req.Image)
	if err != nil {
		return Edited{}, fmt.Errorf("upgrade container %s: %w", rec.Name, err)
	}
	have := rec.Settings()
	want, warnings, err := s.onImage(ctx, rec, img)
	if err != nil {
		return Edited{}, fmt.Errorf("upgrade container %s: %w", rec.Name, err)
	}
	diff := container.Diff(have, want)
	out := Edited{How: how(rec.State.Status, diff), Warnings: warnings}
	if img.ID == rec.Image {
		return out, nil
	}
	for _, c := range diff {
		out.Changes = append(out.Changes, c.What)
	}
	if req.DryRun {
		return out, nil
	}
	if err := mayRestart(&rec, out.How); err != nil {
		return Edited{}, err
	}
	want.Tree = rec.ID + "." + newID()[:12]
	opts, err := s.treeOptions(&rec)
	if err != nil {
		return Edited{}, fmt.Errorf("upgrade container %s: %w", rec.Name, err)
	}
	if err := s.Trees.Prepare(ctx, want.Tree, img.Chain, opts); err != nil {
		return Edited{}, fmt.Errorf("upgrade container %s: make its file tree: %w", rec.Name, err)
	}
	grace := req.Grace
	if grace == 0 {
		grace = defaultGrace
	}
	if err := s.recreate(ctx, ctr, want, func(ctx context.Context) error { return s.proves(ctx, ctr, grace) }); err != nil {
		if rerr := s.Trees.Remove(ctx, want.Tree); rerr != nil && !slices.Contains(treesOf(ctr.record()), want.Tree) {
			s.Log.Warn("remove the file tree of an upgrade that failed", "container", rec.Name, "error", rerr)
		}
		return Edited{}, fmt.Errorf("upgrade container %s to %s: %w", rec.Name, req.name(&rec), err)
	}
	s.emit(ctr, "upgrade", nil)
	return out, nil
}

func (r UpgradeRequest) name(rec *container.Record) string {
	if r.Image != "" {
		return r.Image
	}
	return rec.ImageRef
}

// upgradeTo finds the image, for the platform that the container has.
func (s *Service) upgradeTo(ctx context.Context, rec *container.Record, ref string) (image.Image, error) {
	if ref == "" {
		ref = rec.ImageRef
	}
	img, err := s.Images.Get(ctx, ref)
	if err != nil {
		return img, err
	}
	rec.ImageRef = ref
	return s.forPlatform(ctx, ref, rec.Platform, img)
}

// onImage is what the settings of a container become on another image.
func (s *Service) onImage(ctx context.Context, rec container.Record, img image.Image) (container.Settings, []string, error) {
	had := rec.Mounts
	var warnings []string
	cfg := rec.Config
	if old, err := s.Images.Get(ctx, rec.Image.String()); err == nil {
		cfg = unmerge(cfg, old.Config.Config)
	} else {
		warnings = append(warnings, fmt.Sprintf("the image that %s was made of is gone: what it had from there is kept as if it had been asked for", rec.Name))
	}
	cfg.Image = rec.ImageRef
	rec.Config = merge(cfg, img.Config.Config)
	rec.Image, rec.Platform = img.ID, platform(img)
	more, err := s.validateAgain(&rec)
	if err != nil {
		return container.Settings{}, nil, err
	}
	if err := s.resettle(&rec, had); err != nil {
		return container.Settings{}, nil, err
	}
	return rec.Settings(), append(warnings, more...), nil
}

// unmerge takes out of a configuration what an image gave it: the opposite of merge. Something that was asked for and is what the image says anyway cannot be told from it.
func unmerge(cfg container.Config, img image.RunConfig) container.Config {
	if cfg.User == img.User {
		cfg.User = ""
	}
	cfg.ExposedPorts = without(cfg.ExposedPorts, img.ExposedPorts)
	cfg.Volumes = without(cfg.Volumes, img.Volumes)
	cfg.Env = slices.DeleteFunc(slices.Clone(cfg.Env), func(kv string) bool { return slices.Contains(img.Env, kv) })
	labels := maps.Clone(cfg.Labels)
	maps.DeleteFunc(labels, func(name, value string) bool { old, ok := img.Labels[name]; return ok && old == value })
	cfg.Labels = labels
	if slices.Equal(cfg.Entrypoint, img.Entrypoint) {
		cfg.Entrypoint = nil
		if slices.Equal(cfg.Cmd, img.Cmd) {
			cfg.Cmd, cfg.ArgsEscaped = nil, false
		}
	}
	for _, same := range []struct{ have, img *string }{{&cfg.WorkingDir, &img.WorkingDir}, {&cfg.StopSignal, &img.StopSignal}} {
		if *same.have == *same.img {
			*same.have = ""
		}
	}
	if reflect.DeepEqual(cfg.StopTimeout, img.StopTimeout) {
		cfg.StopTimeout = nil
	}
	if reflect.DeepEqual(cfg.Healthcheck, img.Healthcheck) {
		cfg.Healthcheck = nil
	}
	if slices.Equal(cfg.Shell, img.Shell) {
		cfg.Shell = nil
	}
	return cfg
}

func without(have, gone map[string]struct{}) map[string]struct{} {
	left := maps.Clone(have)
	maps.DeleteFunc(left, func(key string, _ struct{}) bool { _, is := gone[key]; return is })
	return left
}
