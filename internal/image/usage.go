package image

import (
	"context"
	"sort"

	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/content"
	"corten.dev/corten/internal/snapshot"
)

// DiskUsage is what images take on disk.
type DiskUsage struct {
	Images []ImageUsage // newest first, as List
	// Layers and LayerBytes are the unpacked layers of images, each counted once however many images have it, or share its files.
	Layers     int
	LayerBytes int64
	// Content is the blobs beside them: configs and manifests, compressed layers that are kept, downloads under way.
	Content content.Usage
	Blobs   Remade
	// Reclaimable is what would go with the images that are not in use: layers that no other image has, and their kept blobs.
	Reclaimable int64
}

// ImageUsage is one image's part.
type ImageUsage struct {
	ID     digest.Digest
	Size   int64 // of all its layers
	Shared int64 // of those that other images have, too
	InUse  bool
}

// Unique is what would go with the image.
func (u ImageUsage) Unique() int64 { return u.Size - u.Shared }

// DiskUsage adds up what is known in memory: it looks at no layer, and returns at once. inUse tells which images containers stand on; nil is none.
func (s *Images) DiskUsage(ctx context.Context, inUse func(digest.Digest) bool) (DiskUsage, error) {
	files, err := s.fileGroups(ctx)
	if err != nil {
		return DiskUsage{}, err
	}
	var u DiskUsage
	if u.Content, err = s.blobs.Usage(); err != nil {
		return u, err
	}
	u.Blobs = s.Remade()
	kept := map[digest.Digest]int64{}
	s.forms.each(func(diff digest.Digest, f form) {
		if f.Kept {
			kept[diff] += f.Size
		}
	})
	s.mu.RLock()
	all := make([]*entry, 0, len(s.byID))
	for _, e := range s.byID {
		all = append(all, e)
	}
	s.mu.RUnlock()
	sort.Slice(all, func(i, j int) bool { return newer(all[i], all[j]) })
	owners := map[string]int{} // images by files
	used := map[string]bool{}
	busy := make([]bool, len(all))
	for i, e := range all {
		busy[i] = inUse != nil && inUse(e.id)
		for name := range filesOf(e, files) {
			owners[name]++
			used[name] = used[name] || busy[i]
		}
	}
	counted := map[string]bool{}
	for i, e := range all {
		one := ImageUsage{ID: e.id, Size: e.size(), InUse: busy[i]}
		for name, at := range filesOf(e, files) {
			if owners[name] > 1 {
				one.Shared += e.sizes[at]
			}
			if counted[name] {
				continue
			}
			counted[name] = true
			u.Layers++
			u.LayerBytes += e.sizes[at]
			if !used[name] {
				u.Reclaimable += e.sizes[at] + kept[e.cfg.RootFS.DiffIDs[at]]
			}
		}
		u.Images = append(u.Images, one)
	}
	return u, nil
}

// fileGroups tells which layers share their files.
func (s *Images) fileGroups(ctx context.Context) (map[snapshot.ChainID]string, error) {
	layers, err := s.snaps.Layers(ctx)
	if err != nil {
		return nil, err
	}
	files := make(map[snapshot.ChainID]string, len(layers))
	for _, l := range layers {
		files[l.Chain] = l.Files
	}
	return files, nil
}

// filesOf are the files of an image's layers, with one layer each that has them.
func filesOf(e *entry, files map[snapshot.ChainID]string) map[string]int {
	all := make(map[string]int, len(e.chains))
	for i, chain := range e.chains {
		all[files[chain]] = i
	}
	return all
}

func newer(a, b *entry) bool {
	x, y := createdAt(a.cfg), createdAt(b.cfg)
	if !x.Equal(y) {
		return x.After(y)
	}
	return a.id < b.id
}
