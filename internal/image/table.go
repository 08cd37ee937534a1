package image

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"sort"

	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/reference"
)

// change edits the names and images and makes the result durable. edit works on copies; when it fails or the disk does, nothing changed.
func (s *Images) change(edit func(t *table) error) error {
	s.commit.Lock()
	defer s.commit.Unlock()
	s.mu.RLock()
	t := &table{byID: maps.Clone(s.byID), names: maps.Clone(s.names), indexes: maps.Clone(s.indexes), artifacts: maps.Clone(s.artifacts)}
	s.mu.RUnlock()
	if err := edit(t); err != nil {
		return err
	}
	dropped := t.dropNameless()
	rec := indexRecord{Names: t.names, Indexes: t.indexes, Artifacts: t.artifacts}
	for name := range t.indexes {
		if t.names[name] == "" {
			delete(t.indexes, name)
		}
	}
	going := append(t.unnamed(), dropped...)
	for id, e := range t.byID {
		rec.Images = append(rec.Images, imageRecord{id, e.tagged, e.manifests})
	}
	sort.Slice(rec.Images, func(i, j int) bool { return rec.Images[i].ID < rec.Images[j].ID })
	if err := s.writeIndex(rec); err != nil {
		return fmt.Errorf("write image index: %w", err)
	}
	known := nameSets(t.names)
	s.mu.Lock()
	s.byID, s.names, s.indexes, s.artifacts, s.known = t.byID, t.names, t.indexes, t.artifacts, known
	s.mu.Unlock()
	for _, d := range going {
		s.gate.candidate(loose{config: true, name: d})
	}
	return nil
}

// table is what the index file says.
type table struct {
	byID    map[digest.Digest]*entry
	names   map[string]digest.Digest
	indexes map[string]digest.Digest
	// artifacts: of an index, the manifests and blobs of what it lists beside images.
	artifacts map[digest.Digest][]digest.Digest
}

// unnamed drops the artifacts of the indexes that no name leads to any more, and lists what may have to go with that.
func (t *table) unnamed() (going []digest.Digest) {
	named := map[digest.Digest]bool{}
	for _, index := range t.indexes {
		named[index] = true
	}
	for index, parts := range t.artifacts {
		if !named[index] || len(parts) == 0 {
			going = append(append(going, index), parts...)
			delete(t.artifacts, index)
		}
	}
	return going
}

// name makes a name lead to an image. It is no longer the name of an index.
func (t *table) name(r reference.Ref, id digest.Digest) {
	t.names[r.String()] = id
	delete(t.indexes, r.String())
}

func (s *Images) writeIndex(rec indexRecord) (err error) {
	data, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(s.root, indexFile+".*.tmp")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errs.Also(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), filepath.Join(s.root, indexFile))
	}
	if err != nil {
		return errs.Also(err, os.Remove(f.Name()))
	}
	dir, err := os.Open(s.root)
	if err != nil {
		return err
	}
	return errs.Also(dir.Sync(), dir.Close())
}
