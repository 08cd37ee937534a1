package image

import (
	"context"
	"encoding/json"
	"io"
	"sort"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/compressed"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/reference"
)

// oldImage is what we need of the json beside each layer in archives from before Docker 1.10, where each layer was an image with a parent.
type oldImage struct {
	Parent          string     `json:"parent"`
	Created         *time.Time `json:"created"`
	Author          string     `json:"author"`
	Comment         string     `json:"comment"`
	Throwaway       bool       `json:"throwaway"`
	ContainerConfig struct {
		Cmd []string
	} `json:"container_config"`
}

// oldImages reads the file repositories: name, tag, id of the topmost layer.
func (sp *spool) oldImages(ctx context.Context) ([]packed, error) {
	var repos map[string]map[string]string
	if err := sp.json("repositories", &repos); err != nil {
		return nil, err
	}
	var all []packed
	byID := map[string]int{}
	for _, name := range sortedKeys(repos) {
		for _, tag := range sortedKeys(repos[name]) {
			ref, err := reference.Parse(name + ":" + tag)
			if err != nil {
				return nil, errs.New(errs.Invalid, "archive: tag %q: %w", name+":"+tag, err)
			}
			id := repos[name][tag]
			n, again := byID[id]
			if !again {
				img, err := sp.oldImage(ctx, id)
				if err != nil {
					return nil, err
				}
				n = len(all)
				byID[id] = n
				all = append(all, img)
			}
			all[n].refs = append(all[n].refs, ref)
		}
	}
	if len(all) == 0 {
		return nil, errs.New(errs.Invalid, "archive holds no image: repositories is empty")
	}
	return all, nil
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}

// oldImage follows the parents down and makes today's config of what it finds.
func (sp *spool) oldImage(ctx context.Context, top string) (packed, error) {
	var img packed
	var history []History
	var diffs []digest.Digest
	for id := top; id != ""; {
		if len(img.layers) == 500 {
			return img, errs.New(errs.Invalid, "archive: image %s has more than 500 layers, or its parents go in a circle", top)
		}
		if strings.ContainsAny(id, "/.") {
			return img, errs.New(errs.Invalid, "archive: %q is not an image id", id)
		}
		var old oldImage
		if err := sp.json(id+"/json", &old); err != nil {
			return img, err
		}
		diff, err := sp.diffID(ctx, id+"/layer.tar")
		if err != nil {
			return img, err
		}
		img.layers = append(img.layers, id+"/layer.tar")
		diffs = append(diffs, diff)
		history = append(history, History{Created: old.Created, Author: old.Author, Comment: old.Comment, CreatedBy: strings.Join(old.ContainerConfig.Cmd, " ")})
		id = old.Parent
	}
	reverse(img.layers)
	reverse(diffs)
	reverse(history)
	var err error
	img.raw, err = sp.oldConfig(top, RootFS{Type: "layers", DiffIDs: diffs}, history)
	return img, err
}

func reverse[T any](s []T) {
	for i, j := 0, len(s)-1; i < j; i, j = i+1, j-1 {
		s[i], s[j] = s[j], s[i]
	}
}

// oldConfig keeps the topmost json as it is but for what names the old parents, and adds the layers and their history.
func (sp *spool) oldConfig(id string, rootfs RootFS, history []History) ([]byte, error) {
	var raw map[string]json.RawMessage
	if err := sp.json(id+"/json", &raw); err != nil {
		return nil, err
	}
	for _, key := range []string{"id", "parent", "parent_id", "layer_id", "Size", "throwaway"} {
		delete(raw, key)
	}
	for key, val := range map[string]any{"rootfs": rootfs, "history": history} {
		data, err := json.Marshal(val)
		if err != nil {
			return nil, err
		}
		raw[key] = data
	}
	return json.Marshal(raw)
}

// diffID digests a layer's plain bytes: old archives do not state it.
func (sp *spool) diffID(ctx context.Context, name string) (digest.Digest, error) {
	r, _, err := sp.open(name)
	if err != nil {
		return "", err
	}
	plain, err := compressed.Reader(ctx, r)
	if err != nil {
		return "", err
	}
	defer plain.Close()
	h := digest.SHA256.Digester()
	if _, err := io.Copy(h.Hash(), plain); err != nil {
		return "", err
	}
	return h.Digest(), nil
}
