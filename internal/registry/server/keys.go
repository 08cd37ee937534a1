package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/reference"
)

// What is kept as values. The parts of a repository's name stand as they are; none of them can begin with "_".
//
//	repositories/<name>/_blobs/<algorithm>/<hex>        "<time> <size>": the repository holds that blob, and since when somebody counts on it
//	repositories/<name>/_manifests/<algorithm>/<hex>    a line of JSON (recordHead), then the manifest's own bytes
//	repositories/<name>/_tags/<tag>                     JSON (tagValue)
//	repositories/<name>/_referrers/<algorithm>/<hex of the subject>/<algorithm>.<hex>    JSON: the descriptor to answer with
//
// Writing order, so that a crash between two steps leaves only what the collection removes: blob, then link; manifest, then referrer, then tags.
// Removing goes the other way round.
const (
	repositoriesKey = "repositories"
	blobsPart       = "_blobs"
	manifestsPart   = "_manifests"
	tagsPart        = "_tags"
	referrersPart   = "_referrers"
)

func repositoryKey(repo string) string { return repositoriesKey + "/" + repo }

func linkKey(repo string, d digest.Digest) string {
	return repositoryKey(repo) + "/" + blobsPart + "/" + d.Algorithm().String() + "/" + d.Encoded()
}

func manifestKey(repo string, d digest.Digest) string {
	return repositoryKey(repo) + "/" + manifestsPart + "/" + d.Algorithm().String() + "/" + d.Encoded()
}

func tagKey(repo, tag string) string { return repositoryKey(repo) + "/" + tagsPart + "/" + tag }

func referrersKey(repo string, subject digest.Digest) string {
	return repositoryKey(repo) + "/" + referrersPart + "/" + subject.Algorithm().String() + "/" + subject.Encoded()
}

func referrerName(d digest.Digest) string { return d.Algorithm().String() + "." + d.Encoded() }

// parseDigest accepts the digests that can be kept.
func parseDigest(s string) (digest.Digest, bool) {
	d := digest.Digest(s)
	if len(s) > 7+1+128 || d.Validate() != nil || !knownAlgorithm(d.Algorithm()) {
		return "", false
	}
	return d, true
}

func knownAlgorithm(a digest.Algorithm) bool {
	return a == digest.SHA256 || a == digest.SHA512 || a == digest.SHA384
}

// validName tells whether a string can name a repository: the grammar of the specification, and at most 255 bytes, which file names and keys bear.
func validName(name string) bool {
	if name == "" || len(name) > 255 {
		return false
	}
	ref, err := reference.Parse("registry.invalid/" + name)
	return err == nil && ref.Path == name && ref.Tag == "" && ref.Digest == ""
}

// link is that a repository holds a blob.
type link struct {
	seen time.Time // when somebody last counted on it
	size int64
}

func (l link) encode() []byte {
	return []byte(l.seen.UTC().Format(time.RFC3339Nano) + " " + strconv.FormatInt(l.size, 10))
}

func decodeLink(raw []byte) (link, error) {
	when, size, ok := strings.Cut(string(raw), " ")
	seen, err := time.Parse(time.RFC3339Nano, when)
	n, err2 := strconv.ParseInt(size, 10, 64)
	if !ok || err != nil || err2 != nil || n < 0 {
		return link{}, fmt.Errorf("link of a blob is damaged: %.60q", raw)
	}
	return link{seen: seen, size: n}, nil
}

// recordHead is the first line of a kept manifest.
type recordHead struct {
	MediaType string        `json:"mediaType"`
	Pushed    time.Time     `json:"pushed"`            // the last time
	Seen      time.Time     `json:"seen"`              // when somebody last counted on it
	Subject   digest.Digest `json:"subject,omitempty"` // of a referrer
}

// manifestRecord is a kept manifest.
type manifestRecord struct {
	recordHead
	raw []byte
}

func (m manifestRecord) encode() ([]byte, error) {
	head, err := json.Marshal(m.recordHead)
	if err != nil {
		return nil, fmt.Errorf("keep manifest: %w", err)
	}
	return append(append(head, '\n'), m.raw...), nil
}

func decodeManifest(value []byte) (manifestRecord, error) {
	head, raw, ok := bytes.Cut(value, []byte{'\n'})
	m := manifestRecord{raw: raw}
	if err := json.Unmarshal(head, &m.recordHead); err != nil || !ok {
		return m, fmt.Errorf("kept manifest is damaged: %.60q", head)
	}
	return m, nil
}

// tagValue is what a tag says.
type tagValue struct {
	Digest digest.Digest `json:"digest"`
	Pushed time.Time     `json:"pushed"`
}

func decodeTag(value []byte) (tagValue, error) {
	var t tagValue
	if err := json.Unmarshal(value, &t); err != nil {
		return t, fmt.Errorf("tag is damaged: %.60q", value)
	}
	if _, ok := parseDigest(string(t.Digest)); !ok {
		return t, fmt.Errorf("tag is damaged: %.60q", value)
	}
	return t, nil
}

// exists tells whether anything is known of a repository.
func (r *Registry) exists(ctx context.Context, repo string) (bool, error) {
	found := false
	err := r.d.List(ctx, repositoryKey(repo), "", func(name string, dir bool) error {
		if strings.HasPrefix(name, "_") {
			found = true
			return errEnough
		}
		return nil
	})
	return found, enough(err)
}

// errEnough ends a walk that found what it wanted.
var errEnough = errors.New("enough")

func enough(err error) error {
	if errors.Is(err, errEnough) {
		return nil
	}
	return err
}

// getManifest reads a kept manifest, and its value as it is kept; errs.NotFound.
func (r *Registry) getManifest(ctx context.Context, repo string, d digest.Digest) (manifestRecord, []byte, error) {
	value, err := r.d.Get(ctx, manifestKey(repo, d))
	if err != nil {
		return manifestRecord{}, nil, err
	}
	m, err := decodeManifest(value)
	return m, value, err
}

func (r *Registry) getTag(ctx context.Context, repo, tag string) (tagValue, []byte, error) {
	value, err := r.d.Get(ctx, tagKey(repo, tag))
	if err != nil {
		return tagValue{}, nil, err
	}
	t, err := decodeTag(value)
	return t, value, err
}

func isNotFound(err error) bool { return errors.Is(err, errs.NotFound) }
