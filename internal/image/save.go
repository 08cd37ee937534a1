package image

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"sort"
	"time"

	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/manifest"
	"corten.dev/corten/internal/reference"
	"corten.dev/corten/internal/snapshot"
)

// Save writes an archive that is a docker archive and an OCI layout at once:
//
//	blobs/sha256/<hex>   configs, manifests, layers (as the image came, if that can be had; else plain tars)
//	index.json           OCI: a manifest for each image and name
//	manifest.json        docker: config, names and layers of each image
//	oci-layout
//	repositories         docker before 1.10, for programs that look for names there
//
// Each blob is written once, and equal images give equal bytes: entries carry the image's own time. The layers of the chains in without are left out: whoever loads the archive
// has them.
func (s *Images) Save(ctx context.Context, refs []string, without []snapshot.ChainID, w io.Writer) error {
	list, err := s.saveList(refs)
	if err != nil {
		return err
	}
	return s.saveTo(ctx, &archive{without: without}, list, w)
}

// SaveFor implements [Platforms].
func (s *Images) SaveFor(ctx context.Context, refs []string, wanted []manifest.Platform, w io.Writer) error {
	named, err := s.saveList(refs)
	if err != nil {
		return err
	}
	var list []saved
	for _, it := range named {
		ref := it.e.id.String()
		switch {
		case len(it.refs) > 0:
			ref = it.refs[0].String()
		case len(it.whole) > 0:
			ref = it.whole[0]
		}
		for _, p := range wanted {
			e, err := s.findFor(ctx, ref, p)
			if err != nil {
				return err
			}
			list = append(list, saved{e: e, refs: it.refs})
		}
	}
	return s.saveTo(ctx, &archive{single: true}, list, w)
}

func (s *Images) saveTo(ctx context.Context, a *archive, list []saved, w io.Writer) error {
	s.busy.Add(1)
	defer s.busy.Add(-1)
	a.tw, a.have, a.when = tar.NewWriter(w), map[digest.Digest]bool{}, time.Unix(0, 0)
	if err := s.save(ctx, a, list); err != nil {
		return fmt.Errorf("save: %w", err)
	}
	return nil
}

// saved is one image to save with the names it was asked by.
type saved struct {
	e    *entry
	refs []reference.Ref
	// whole are the digests of the indexes that were asked for without a name, and that show the image.
	whole []string
}

// saveList finds the images. A name without tag or digest means all tags of that repository, as in docker.
func (s *Images) saveList(refs []string) ([]saved, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var list []saved
	at := map[digest.Digest]int{}
	put := func(e *entry, names ...reference.Ref) *saved {
		n, again := at[e.id]
		if !again {
			n = len(list)
			at[e.id] = n
			list = append(list, saved{e: e})
		}
		for _, r := range names {
			if !contains(list[n].refs, r) {
				list[n].refs = append(list[n].refs, r)
			}
		}
		return &list[n]
	}
	for _, ref := range refs {
		if all := s.repository(ref); len(all) > 0 {
			for _, r := range all {
				put(s.byID[s.names[r.String()]], r)
			}
			continue
		}
		e, err := s.find(ref)
		if err != nil {
			return nil, err
		}
		r, err := reference.Parse(ref)
		if err == nil && r.Tag != "" && r.Digest == "" && s.names[r.String()] == e.id {
			put(e, r)
		} else if it := put(e); s.indexItself(ref) != "" {
			it.whole = append(it.whole, ref)
		}
	}
	if len(list) == 0 {
		return nil, errs.New(errs.Invalid, "save: no image named")
	}
	return list, nil
}

// repository lists the tags of a repository, when ref is one's bare name. It needs mu.
func (s *Images) repository(ref string) (all []reference.Ref) {
	repo, err := reference.Parse(ref)
	if err != nil || repo.Tag != "" || repo.Digest != "" {
		return nil
	}
	for name := range s.names {
		if r, err := reference.Parse(name); err == nil && r.Name() == repo.Name() && r.Digest == "" {
			all = append(all, r)
		}
	}
	sort.Slice(all, func(i, j int) bool { return all[i].Tag < all[j].Tag })
	return all
}

type archive struct {
	tw   *tar.Writer
	have map[digest.Digest]bool
	// without are the chains whose topmost layer is left out.
	without []snapshot.ChainID
	// single leaves out the indexes that images came in.
	single bool
	when   time.Time
}

func (a *archive) dir(name string) error {
	return a.tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755, ModTime: a.when})
}

func (a *archive) header(name string, size int64) error {
	return a.tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: size, ModTime: a.when})
}

func (a *archive) file(name string, data []byte) error {
	if err := a.header(name, int64(len(data))); err != nil {
		return err
	}
	_, err := a.tw.Write(data)
	return err
}

func (a *archive) json(name string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return a.file(name, data)
}

func (a *archive) blob(data []byte, mediaType string) (blob, error) {
	b := blob{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	if a.have[b.Digest] {
		return b, nil
	}
	a.have[b.Digest] = true
	return b, a.file("blobs/sha256/"+b.Digest.Encoded(), data)
}

func (s *Images) save(ctx context.Context, a *archive, list []saved) error {
	for _, it := range list {
		if c := it.e.cfg.Created; c != nil && c.After(a.when) {
			a.when = c.Truncate(time.Second)
		}
	}
	for _, dir := range []string{"blobs/", "blobs/sha256/"} {
		if err := a.dir(dir); err != nil {
			return err
		}
	}
	idx := ociIndex{SchemaVersion: 2, MediaType: typeOCIIndex}
	var manifests []dockerManifest
	repos := map[string]map[string]string{}
	for _, it := range list {
		m, docker, err := s.saveImage(ctx, a, it)
		if err != nil {
			return fmt.Errorf("image %s: %w", it.e.id, err)
		}
		manifests = append(manifests, docker)
		if len(it.refs)+len(it.whole) == 0 || a.single && len(it.whole) > 0 {
			idx.Manifests = append(idx.Manifests, m)
		}
		for _, r := range it.whole {
			if a.single {
				break
			}
			whole, err := s.saveIndex(ctx, a, r)
			if err != nil {
				return fmt.Errorf("image %s: %w", it.e.id, err)
			}
			if whole == nil {
				whole = &m
			}
			idx.Manifests = append(idx.Manifests, *whole)
		}
		for _, r := range it.refs {
			named := m
			if !a.single {
				whole, err := s.saveIndex(ctx, a, r.String())
				if err != nil {
					return fmt.Errorf("image %s: %w", it.e.id, err)
				}
				if whole != nil {
					named = *whole
				}
			}
			named.Annotations = map[string]string{annotationName: r.String(), annotationRefName: r.Tag}
			idx.Manifests = append(idx.Manifests, named)
			if n := len(it.e.cfg.RootFS.DiffIDs); n > 0 {
				name := r.FamiliarName()
				if repos[name] == nil {
					repos[name] = map[string]string{}
				}
				repos[name][r.Tag] = it.e.cfg.RootFS.DiffIDs[n-1].Encoded()
			}
		}
	}
	if err := a.json("index.json", idx); err != nil {
		return err
	}
	if err := a.json("manifest.json", manifests); err != nil {
		return err
	}
	if err := a.file("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)); err != nil {
		return err
	}
	if len(repos) > 0 {
		if err := a.json("repositories", repos); err != nil {
			return err
		}
	}
	return a.tw.Close()
}

func (s *Images) saveImage(ctx context.Context, a *archive, it saved) (blob, dockerManifest, error) {
	e := it.e
	docker := dockerManifest{Config: "blobs/sha256/" + e.id.Encoded(), LayerSources: map[digest.Digest]json.RawMessage{}, Layers: []string{}}
	ref := ""
	for _, r := range it.refs {
		docker.RepoTags = append(docker.RepoTags, r.Familiar())
		ref = r.String()
	}
	sort.Strings(docker.RepoTags)
	var desc blob
	var layers []blob
	doc := s.manifestFor(ctx, e, ref)
	as, err := s.goesAsItCame(ctx, e, doc, a.without)
	if err != nil {
		return blob{}, docker, err
	}
	if as {
		for _, l := range doc.Manifest.Layers {
			layers = append(layers, blob{MediaType: l.MediaType, Digest: l.Digest, Size: l.Size})
		}
		desc, err = s.saveAsItCame(ctx, a, e, doc)
	} else {
		desc, layers, err = s.savePlain(ctx, a, e)
	}
	if err != nil {
		return blob{}, docker, err
	}
	for i, b := range layers {
		docker.Layers = append(docker.Layers, "blobs/sha256/"+b.Digest.Encoded())
		source, err := json.Marshal(b)
		if err != nil {
			return blob{}, docker, err
		}
		docker.LayerSources[e.cfg.RootFS.DiffIDs[i]] = source
	}
	desc.Platform = &ociPlatform{OS: e.cfg.OS, Architecture: e.cfg.Architecture, Variant: e.cfg.Variant}
	return desc, docker, nil
}

// savePlain writes the layers uncompressed, with a manifest of their own.
func (s *Images) savePlain(ctx context.Context, a *archive, e *entry) (blob, []blob, error) {
	m := ociManifest{SchemaVersion: 2, MediaType: typeOCIManifest, Layers: []blob{}}
	for i, chain := range e.chains {
		diff := e.cfg.RootFS.DiffIDs[i]
		size, err := s.saveLayer(ctx, a, chain, diff)
		if err != nil {
			return blob{}, nil, err
		}
		m.Layers = append(m.Layers, blob{MediaType: typeOCILayer, Digest: diff, Size: size})
	}
	var err error
	if m.Config, err = a.blob(e.raw, typeOCIConfig); err != nil {
		return blob{}, nil, err
	}
	data, err := json.Marshal(m)
	if err != nil {
		return blob{}, nil, err
	}
	desc, err := a.blob(data, typeOCIManifest)
	return desc, m.Layers, err
}

func (s *Images) saveLayer(ctx context.Context, a *archive, chain, diff digest.Digest) (int64, error) {
	l, err := s.snaps.Stat(ctx, chain)
	if err != nil || a.have[diff] || slices.Contains(a.without, chain) {
		return l.TarSize, err
	}
	a.have[diff] = true
	if err := a.header("blobs/sha256/"+diff.Encoded(), l.TarSize); err != nil {
		return 0, err
	}
	return l.TarSize, s.snaps.LayerTar(ctx, chain, a.tw)
}

// HasChain implements [Store].
func (s *Images) HasChain(ctx context.Context, chain snapshot.ChainID) (bool, error) {
	_, err := s.snaps.Stat(ctx, chain)
	if errors.Is(err, errs.NotFound) {
		return false, nil
	}
	return err == nil, err
}
