package cli

import (
	"encoding/json"
	"errors"
	"net/url"
	"os"
	"path/filepath"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/manifest"
	"corten.dev/corten/internal/reference"
)

// listStore keeps manifest lists that are being made, a file each:
//
//	<config>/manifest-lists/<name, escaped>.json
type listStore struct{ dir string }

// manifestList is a list that is being made.
type manifestList struct{ Entries []listEntry }

// listEntry is one manifest of a list. The raw document is kept so that it can be shown without asking again.
type listEntry struct {
	Ref        string
	Descriptor ocispec.Descriptor
	Raw        []byte
}

func (s listStore) path(ref reference.Ref) string {
	return filepath.Join(s.dir, url.PathEscape(ref.String())+".json")
}

func (s listStore) read(ref reference.Ref) (manifestList, error) {
	var list manifestList
	raw, err := os.ReadFile(s.path(ref))
	if errors.Is(err, os.ErrNotExist) {
		return list, errs.New(errs.NotFound, "No such manifest: %s", ref.Familiar())
	}
	if err != nil {
		return list, err
	}
	if err := json.Unmarshal(raw, &list); err != nil {
		return list, invalid("%s: %w", s.path(ref), err)
	}
	return list, nil
}

// write replaces the file as a whole.
func (s listStore) write(ref reference.Ref, list manifestList) error {
	raw, err := json.Marshal(list)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return err
	}
	return replaceFile(s.path(ref), raw)
}

func (s listStore) remove(ref reference.Ref) error { return os.Remove(s.path(ref)) }

// put adds a manifest; one of the same name is replaced.
func (l *manifestList) put(e listEntry) {
	for i := range l.Entries {
		if l.Entries[i].Ref == e.Ref {
			l.Entries[i] = e
			return
		}
	}
	l.Entries = append(l.Entries, e)
}

// entry finds a manifest by the name it was added by, or by its digest.
func (l *manifestList) entry(ref reference.Ref) *listEntry {
	for i := range l.Entries {
		if e := &l.Entries[i]; e.Ref == ref.String() || ref.Digest != "" && e.Descriptor.Digest.String() == ref.Digest {
			return e
		}
	}
	return nil
}

// document is the list as registries take it: an OCI index when one of its manifests is OCI's, else Docker's list.
func (l *manifestList) document() (manifest.Document, error) {
	idx := ocispec.Index{MediaType: manifest.DockerList, Manifests: []ocispec.Descriptor{}}
	idx.SchemaVersion = 2
	for _, e := range l.Entries {
		if e.Descriptor.MediaType == manifest.OCIManifest {
			idx.MediaType = manifest.OCIIndex
		}
		d := e.Descriptor
		idx.Manifests = append(idx.Manifests, ocispec.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size, Platform: d.Platform})
	}
	raw, err := json.MarshalIndent(idx, "", "   ")
	if err != nil {
		return manifest.Document{}, err
	}
	return manifest.Parse(idx.MediaType, raw)
}
