package server

import (
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/errs"
)

// What every driver holds its callers to, in the words of [Driver].

// CheckKey refuses what is not the name of a value.
func CheckKey(key string) error {
	for part := range strings.SplitSeq(key, "/") {
		if !plain(part, 255) {
			return errs.New(errs.Invalid, "%q is not the name of a value", key)
		}
	}
	return nil
}

// CheckDigest refuses what is not the digest of a blob that can be kept.
func CheckDigest(d digest.Digest) error {
	if _, ok := parseDigest(string(d)); !ok {
		return errs.New(errs.Invalid, "invalid or unsupported digest %.150q", string(d))
	}
	return nil
}

// ValidUpload tells whether a string can name an upload.
func ValidUpload(id string) bool { return plain(id, 160) }

// plain tells whether a string is one plain name, which cannot leave its folder.
func plain(s string, limit int) bool {
	if s == "" || s == "." || s == ".." || len(s) > limit {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '.' || c == '_' || c == '-') {
			return false
		}
	}
	return true
}

// Uploads are those that somebody has open. The zero value is ready.
type Uploads struct {
	mu  sync.Mutex // guards ids
	ids map[string]bool
}

// Claim is the beginning of each [Blobs.Upload]: it looks at the options, tells the algorithm, and sees to it that nobody has the upload open twice (errs.Conflict).
func (u *Uploads) Claim(id string, opts UploadOptions) (digest.Algorithm, error) {
	if !ValidUpload(id) {
		return "", errs.New(errs.Invalid, "%q is not the name of an upload", id)
	}
	alg := opts.Algorithm
	if alg == "" {
		alg = digest.SHA256
	}
	if !knownAlgorithm(alg) {
		return "", errs.New(errs.Invalid, "digest algorithm %q is not supported", alg)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.ids[id] {
		return "", errs.New(errs.Conflict, "upload %s: somebody is writing to it", id)
	}
	if u.ids == nil {
		u.ids = map[string]bool{}
	}
	u.ids[id] = true
	return alg, nil
}

// Release is for when it is closed.
func (u *Uploads) Release(id string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.ids, id)
}
