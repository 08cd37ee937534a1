package image

import (
	"bytes"
	"io"
	"strings"

	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/reference"
)

func readerOf(b []byte) io.Reader { return bytes.NewReader(b) }

// noImage is Docker's text, with the tag that was meant.
func noImage(ref string) error {
	if r, err := reference.Parse(ref); err == nil {
		ref = r.WithDefaultTag().Familiar()
	}
	return errs.New(errs.NotFound, "No such image: %s", ref)
}

// find looks for a full id, a name, then an id's beginning. It needs mu.
func (s *Images) find(ref string) (*entry, error) {
	hex, isDigest := strings.CutPrefix(ref, "sha256:")
	if id := digest.NewDigestFromEncoded(digest.SHA256, hex); id.Validate() == nil {
		if e := s.byID[id]; e != nil {
			return e, nil
		}
		if e := s.byID[s.names[namelessName(id)]]; e != nil {
			return e, nil
		}
		return nil, noImage(ref)
	}
	if !isDigest {
		r, err := reference.Parse(ref)
		if err != nil {
			return nil, err
		}
		if e := s.byID[s.lookup(r)]; e != nil {
			return e, nil
		}
	}
	e, err := s.byPrefix(hex)
	if err != nil || e != nil {
		return e, err
	}
	if e := s.byID[s.names[s.nameless(ref)]]; e != nil {
		return e, nil
	}
	return nil, noImage(ref)
}

// lookup finds a name. One with a digest must be known by that digest, or be the image's own id. It needs mu.
func (s *Images) lookup(r reference.Ref) digest.Digest {
	if r.Digest == "" {
		return s.names[r.WithDefaultTag().String()]
	}
	tag := r.Tag
	r.Tag = ""
	if id, ok := s.names[r.String()]; ok {
		return id
	}
	id := digest.Digest(r.Digest)
	for name, other := range s.names {
		if other != id {
			continue
		}
		if n, err := reference.Parse(name); err == nil && n.Name() == r.Name() && (tag == "" || n.Tag == tag) {
			return id
		}
	}
	return ""
}

// byPrefix finds the one image whose id begins so. It needs mu.
func (s *Images) byPrefix(prefix string) (*entry, error) {
	if prefix == "" || strings.Trim(prefix, "0123456789abcdef") != "" {
		return nil, nil
	}
	var found *entry
	for id, e := range s.byID {
		if strings.HasPrefix(id.Encoded(), prefix) {
			if found != nil {
				return nil, errs.New(errs.NotFound, "No such image: %s: the id is ambiguous", prefix)
			}
			found = e
		}
	}
	return found, nil
}
