package image

import (
	"encoding/json"
	"path"
	"sort"
	"strings"

	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/manifest"
	"corten.dev/corten/internal/reference"
)

// dockerManifest is an element of manifest.json.
type dockerManifest struct {
	Config       string
	RepoTags     []string
	Layers       []string
	LayerSources map[digest.Digest]json.RawMessage `json:",omitempty"`
}

// dockerImages reads manifest.json. Config and layers are members, named by any path.
func (sp *spool) dockerImages() ([]packed, error) {
	var list []dockerManifest
	if err := sp.json("manifest.json", &list); err != nil {
		return nil, err
	}
	if len(list) == 0 {
		return nil, errs.New(errs.Invalid, "archive holds no image: manifest.json is empty")
	}
	var all []packed
	for i, m := range list {
		if m.Config == "" {
			return nil, errs.New(errs.Invalid, "archive: image %d of manifest.json names no config", i+1)
		}
		raw, err := sp.read(m.Config)
		if err != nil {
			return nil, err
		}
		// Docker names the config after its digest: blobs/sha256/<hex> or <hex>.json.
		hex := strings.TrimSuffix(path.Base(m.Config), ".json")
		if id := digest.NewDigestFromEncoded(digest.SHA256, hex); id.Validate() == nil && id != digest.FromBytes(raw) {
			return nil, errs.New(errs.Invalid, "archive: %s has other content than its name says", m.Config)
		}
		img := packed{raw: raw, layers: m.Layers}
		for _, tag := range m.RepoTags {
			ref, err := reference.Parse(tag)
			if err != nil {
				return nil, errs.New(errs.Invalid, "archive: tag %q: %w", tag, err)
			}
			if ref.Digest != "" { // of a manifest, which this format has none of: who pins an image by digest must not get what an archive calls so
				return nil, errs.New(errs.Invalid, "archive: invalid tag %q: it has a digest", tag)
			}
			img.refs = append(img.refs, ref.WithDefaultTag())
		}
		all = append(all, img)
	}
	return all, nil
}

// The types of OCI's and Docker's manifests.
const (
	typeOCIIndex      = "application/vnd.oci.image.index.v1+json"
	typeOCIManifest   = "application/vnd.oci.image.manifest.v1+json"
	typeOCIConfig     = "application/vnd.oci.image.config.v1+json"
	typeOCILayer      = "application/vnd.oci.image.layer.v1.tar"
	typeDockerIndex   = "application/vnd.docker.distribution.manifest.list.v2+json"
	typeDockerImage   = "application/vnd.docker.distribution.manifest.v2+json"
	annotationName    = "io.containerd.image.name"
	annotationRefName = "org.opencontainers.image.ref.name"
)

type blob struct {
	MediaType   string            `json:"mediaType,omitempty"`
	Digest      digest.Digest     `json:"digest"`
	Size        int64             `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Platform    *ociPlatform      `json:"platform,omitempty"`
}

type ociPlatform struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
	Variant      string `json:"variant,omitempty"`
}

// check compares what a manifest claims with what is there.
func (b blob) check(m member) error {
	if b.Size != m.size {
		return errs.New(errs.Invalid, "archive: blob %s has %d bytes, its manifest says %d", b.Digest, m.size, b.Size)
	}
	if b.Digest != m.sum {
		return errs.New(errs.Invalid, "archive: blob %s has digest %s", b.Digest, m.sum)
	}
	return nil
}

type ociIndex struct {
	SchemaVersion int    `json:"schemaVersion"`
	MediaType     string `json:"mediaType,omitempty"`
	Manifests     []blob `json:"manifests"`
}

type ociManifest struct {
	SchemaVersion int    `json:"schemaVersion"`
	MediaType     string `json:"mediaType,omitempty"`
	Config        blob   `json:"config"`
	Layers        []blob `json:"layers"`
}

// blobJSON reads and verifies a blob.
func (sp *spool) blobJSON(b blob, v any) ([]byte, error) {
	name, err := blobName(b.Digest)
	if err != nil {
		return nil, err
	}
	_, m, err := sp.open(name)
	if err != nil {
		return nil, err
	}
	if err := b.check(m); err != nil {
		return nil, err
	}
	raw, err := sp.read(name)
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(raw, v); err != nil {
		return nil, errs.New(errs.Invalid, "archive: %s: %w", name, err)
	}
	return raw, nil
}

func blobName(d digest.Digest) (string, error) {
	if err := d.Validate(); err != nil || d.Algorithm() != digest.SHA256 {
		return "", errs.New(errs.Invalid, "archive: %q is not a sha256 digest", string(d))
	}
	return "blobs/sha256/" + d.Encoded(), nil
}

// ociImages reads an OCI layout: of each top entry the best image for the platform.
func (sp *spool) ociImages(p manifest.Platform) ([]packed, error) {
	var idx ociIndex
	if err := sp.json("index.json", &idx); err != nil {
		return nil, err
	}
	var all []packed
	byManifest := map[digest.Digest]int{}
	others := map[string]bool{}
	for _, b := range idx.Manifests {
		found, err := sp.choose(b, p, 0, others)
		if err != nil {
			return nil, err
		}
		if found == nil {
			continue
		}
		n, again := byManifest[found.Digest]
		if !again {
			img, err := sp.ociImage(*found)
			if err != nil {
				return nil, err
			}
			n = len(all)
			byManifest[found.Digest] = n
			all = append(all, img)
		}
		ref, err := ociName(b)
		if err != nil {
			return nil, err
		}
		if ref != nil {
			all[n].refs = append(all[n].refs, *ref)
		}
	}
	if len(all) == 0 {
		if len(others) > 0 {
			var list []string
			for o := range others {
				list = append(list, o)
			}
			sort.Strings(list)
			return nil, errs.New(errs.Invalid, "archive holds no image for %s, only for %s", p, strings.Join(list, ", "))
		}
		return nil, errs.New(errs.Invalid, "archive holds no image: index.json lists none")
	}
	return all, nil
}

// ociName is the name an entry carries. Tools write a full name, a bare tag, or nothing.
func ociName(b blob) (*reference.Ref, error) {
	name := b.Annotations[annotationName]
	if name == "" {
		// A bare tag names no repository: the image stays without a name.
		if name = b.Annotations[annotationRefName]; !strings.ContainsAny(name, ":/") {
			return nil, nil
		}
	}
	ref, err := reference.Parse(name)
	if err != nil {
		return nil, errs.New(errs.Invalid, "archive: name %q: %w", name, err)
	}
	if ref.Digest != "" && ref.Digest != b.Digest.String() {
		return nil, errs.New(errs.Invalid, "archive: name %q: it is given to a manifest of digest %s", name, b.Digest)
	}
	ref = ref.WithDefaultTag()
	return &ref, nil
}

const maxNesting = 8

// choose finds the manifest to take from an entry, which may be an index of indexes. nil: none fits.
func (sp *spool) choose(b blob, p manifest.Platform, depth int, others map[string]bool) (*blob, error) {
	if depth == maxNesting {
		return nil, errs.New(errs.Invalid, "archive: indexes are nested more than %d deep", maxNesting)
	}
	if name, err := blobName(b.Digest); err != nil {
		return nil, err
	} else if !sp.has(name) && depth > 0 {
		return nil, nil // `save` of one platform leaves the others' blobs out
	}
	switch b.MediaType {
	case typeOCIManifest, typeDockerImage, "":
		have, ok, err := sp.platformOf(b)
		if err != nil || !ok {
			return nil, err
		}
		if p.Match(have) == 0 {
			others[have.String()] = true
			return nil, nil
		}
		return &b, nil
	case typeOCIIndex, typeDockerIndex:
	default:
		return nil, nil // an artifact
	}
	var idx ociIndex
	if _, err := sp.blobJSON(b, &idx); err != nil {
		return nil, err
	}
	var best *blob
	score := 0
	for _, sub := range idx.Manifests {
		found, err := sp.choose(sub, p, depth+1, others)
		if err != nil {
			return nil, err
		}
		if found == nil {
			continue
		}
		have, _, err := sp.platformOf(*found)
		if err != nil {
			return nil, err
		}
		if n := p.Match(have); n > score {
			best, score = found, n
		}
	}
	return best, nil
}

// platformOf is what the entry or, if that is silent, the config says. Not ok: it is no image (an attestation, an artifact).
func (sp *spool) platformOf(b blob) (manifest.Platform, bool, error) {
	if b.Platform != nil {
		have := manifest.Platform{OS: b.Platform.OS, Arch: b.Platform.Architecture, Variant: b.Platform.Variant}
		return have, have.OS != "unknown", nil
	}
	var m ociManifest
	if _, err := sp.blobJSON(b, &m); err != nil {
		return manifest.Platform{}, false, err
	}
	if m.Config.MediaType != "" && m.Config.MediaType != typeOCIConfig && m.Config.MediaType != "application/vnd.docker.container.image.v1+json" {
		return manifest.Platform{}, false, nil
	}
	var cfg Config
	if _, err := sp.blobJSON(m.Config, &cfg); err != nil {
		return manifest.Platform{}, false, err
	}
	return manifest.Platform{OS: cfg.OS, Arch: cfg.Architecture, Variant: cfg.Variant}, true, nil
}

func (sp *spool) ociImage(b blob) (packed, error) {
	var m ociManifest
	if _, err := sp.blobJSON(b, &m); err != nil {
		return packed{}, err
	}
	var cfg Config
	raw, err := sp.blobJSON(m.Config, &cfg)
	if err != nil {
		return packed{}, err
	}
	img := packed{raw: raw, blobs: m.Layers}
	for _, l := range m.Layers {
		name, err := blobName(l.Digest)
		if err != nil {
			return packed{}, err
		}
		img.layers = append(img.layers, name)
	}
	if img.blobs == nil {
		img.blobs = []blob{}
	}
	return img, nil
}
