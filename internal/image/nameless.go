package image

import (
	"strings"

	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/reference"
)

// An index that was built without a name is kept as Docker's containerd store keeps it: it dangles, is found by its digest, and goes with `prune`. In the table it has a name that nobody
// can write, "@" and its digest, which leads to the image that it shows. Its other images are not listed beside it, and go with it.

// namelessName is the name of such an index in the table.
func namelessName(index digest.Digest) string { return "@" + index.String() }

func isNameless(name string) bool { return strings.HasPrefix(name, "@") }

// nameless finds the index without a name that ref means: by its digest, or a beginning of it, else by that of the image that it shows. "" when there is none, or several. It needs mu.
func (s *Images) nameless(ref string) string {
	prefix := strings.TrimPrefix(ref, "sha256:")
	if prefix == "" || strings.Trim(prefix, "0123456789abcdef") != "" {
		return ""
	}
	own, shows := 0, 0
	var byOwn, byShown string
	for name, index := range s.indexes {
		if !isNameless(name) {
			continue
		}
		if strings.HasPrefix(index.Encoded(), prefix) {
			byOwn, own = name, own+1
		}
		if strings.HasPrefix(s.names[name].Encoded(), prefix) && (byShown == "" || name < byShown) {
			byShown, shows = name, shows+1
		}
	}
	switch {
	case own == 1:
		return byOwn
	case own == 0 && shows > 0:
		return byShown
	}
	return ""
}

// indexOf is the index that ref leads to: that of a name, else one without. It needs mu.
func (s *Images) indexOf(ref string) digest.Digest {
	if r, err := reference.Parse(ref); err == nil {
		name := r.WithDefaultTag().String()
		if s.names[name] != "" {
			return s.indexes[name]
		}
	}
	return s.indexes[s.nameless(ref)]
}

// dropNameless drops the indexes without a name whose image went, and those that have a name now. It lists them.
func (t *table) dropNameless() (going []digest.Digest) {
	named := map[digest.Digest]bool{}
	for name, index := range t.indexes {
		named[index] = named[index] || !isNameless(name)
	}
	for name, id := range t.names {
		if index := t.indexes[name]; isNameless(name) && (t.byID[id] == nil || named[index]) {
			going = append(going, index)
			delete(t.names, name)
			delete(t.indexes, name)
		}
	}
	return going
}
