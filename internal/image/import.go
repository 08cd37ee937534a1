package image

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/compressed"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/manifest"
	"corten.dev/corten/internal/reference"
	"corten.dev/corten/internal/snapshot"
)

// Import makes an image with one layer of a tar stream.
func (s *Images) Import(ctx context.Context, r io.Reader, opts ImportOptions) (Image, error) {
	refs, err := parseRefs(opts.Ref)
	if err != nil {
		return Image{}, fmt.Errorf("import: %w", err)
	}
	platform := s.platform
	if opts.Platform != "" {
		if platform, err = manifest.ParsePlatform(opts.Platform); err != nil {
			return Image{}, fmt.Errorf("import: %w", err)
		}
	}
	var run RunConfig
	if err := ApplyChanges(&run, opts.Changes); err != nil {
		return Image{}, fmt.Errorf("import: %w", err)
	}
	plain, err := compressed.Reader(ctx, r)
	if err != nil {
		return Image{}, fmt.Errorf("import: %w", err)
	}
	s.gate.begin()
	defer s.gate.end()
	layer, err := s.snaps.Apply(ctx, "", "", plain)
	if err = errs.Also(err, plain.Close()); err != nil {
		return Image{}, fmt.Errorf("import: %w", err)
	}
	s.gate.candidate(loose{name: layer.Chain})
	now := s.now().UTC()
	comment := opts.Message
	if comment == "" {
		comment = "Imported from -"
	}
	cfg := Config{
		Created: &now, Architecture: platform.Arch, Variant: platform.Variant, OS: platform.OS, Comment: comment, Config: run,
		RootFS:  RootFS{Type: "layers", DiffIDs: []digest.Digest{layer.DiffID}},
		History: []History{{Created: &now, Comment: comment}},
	}
	img, err := s.addConfig(ctx, cfg, refs)
	if err != nil {
		return Image{}, fmt.Errorf("import: %w", err)
	}
	return img, nil
}

// parseRefs reads the one name a new image gets, which may be empty.
func parseRefs(name string) ([]reference.Ref, error) {
	if name == "" {
		return nil, nil
	}
	ref, err := reference.Parse(name)
	if err != nil {
		return nil, err
	}
	if ref.Digest != "" {
		return nil, fmt.Errorf("%w", errDigestName)
	}
	return []reference.Ref{ref.WithDefaultTag()}, nil
}

func (s *Images) addConfig(ctx context.Context, cfg Config, refs []reference.Ref) (Image, error) {
	raw, err := json.Marshal(cfg)
	if err != nil {
		return Image{}, err
	}
	e, err := s.add(ctx, raw, refs)
	if err != nil {
		return Image{}, err
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.describe(e), nil
}

// emptyDiff is the archive that has nothing in it.
const emptyDiff digest.Digest = "sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef"

// Commit makes an image of a container's tree: the layers of its parent and one more, if anything was changed.
func (s *Images) Commit(ctx context.Context, opts CommitOptions) (Image, error) {
	refs, err := parseRefs(opts.Ref)
	if err != nil {
		return Image{}, fmt.Errorf("commit: %w", err)
	}
	run := opts.Run.clone()
	if err := ApplyChanges(&run, opts.Changes); err != nil {
		return Image{}, fmt.Errorf("commit: %w", err)
	}
	// Docker's rule: an entrypoint that was emptied or not set lets the container's own command through.
	if len(run.Entrypoint) == 0 {
		if len(run.Cmd) == 0 {
			run.Cmd = opts.Run.Cmd
		}
		if run.Entrypoint == nil {
			run.Entrypoint = opts.Run.Entrypoint
		}
	}
	cfg := Config{OS: s.platform.OS, Architecture: s.platform.Arch, Variant: s.platform.Variant, RootFS: RootFS{Type: "layers"}}
	var parent snapshot.ChainID
	if opts.Parent != "" {
		img, err := s.Get(ctx, opts.Parent.String())
		if err != nil {
			return Image{}, fmt.Errorf("commit: %w", err)
		}
		parent = img.Chain
		cfg.OS, cfg.OSVersion, cfg.Architecture, cfg.Variant = img.Config.OS, img.Config.OSVersion, img.Config.Architecture, img.Config.Variant
		cfg.RootFS.DiffIDs = append(cfg.RootFS.DiffIDs, img.Config.RootFS.DiffIDs...)
		cfg.History = append(cfg.History, img.Config.History...)
	}
	s.gate.begin()
	defer s.gate.end()
	layer, err := s.snaps.Commit(ctx, opts.Key, opts.Without...)
	if err != nil {
		return Image{}, fmt.Errorf("commit: %w", err)
	}
	s.gate.candidate(loose{name: layer.Chain})
	if layer.Parent != parent {
		return Image{}, fmt.Errorf("commit: tree %s does not stand on image %s", opts.Key, opts.Parent)
	}
	now := s.now().UTC()
	cfg.Created, cfg.Author, cfg.Comment, cfg.Config = &now, opts.Author, opts.Comment, run
	unchanged := layer.DiffID == emptyDiff && len(cfg.RootFS.DiffIDs) > 0
	if !unchanged {
		cfg.RootFS.DiffIDs = append(cfg.RootFS.DiffIDs, layer.DiffID)
	}
	cfg.History = append(cfg.History, History{Created: &now, CreatedBy: opts.CreatedBy, Author: opts.Author, Comment: opts.Comment, EmptyLayer: unchanged})
	img, err := s.addConfig(ctx, cfg, refs)
	if err != nil {
		return Image{}, fmt.Errorf("commit: %w", err)
	}
	return img, nil
}

// History tells how an image came to be, newest first.
func (s *Images) History(_ context.Context, ref string) ([]HistoryEntry, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	e, err := s.find(ref)
	if err != nil {
		return nil, err
	}
	var all []HistoryEntry
	layer := 0
	for _, h := range e.cfg.History {
		line := HistoryEntry{ID: "<missing>", CreatedBy: h.CreatedBy, Comment: h.Comment}
		if h.Created != nil {
			line.Created = *h.Created
		} else {
			line.Created = time.Unix(0, 0).UTC()
		}
		if !h.EmptyLayer {
			if layer < len(e.sizes) {
				line.Size = e.sizes[layer]
			}
			layer++
		}
		all = append(all, line)
	}
	reverse(all)
	if len(all) > 0 {
		img := s.describe(e)
		all[0].ID, all[0].Tags = e.id.String(), img.Tags
	}
	return all, nil
}
