package export

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"path"
	"strings"

	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/version"
)

// A bill of materials that a scanner made of the result itself is completed as BuildKit does: each file of it that has no comment is told the layer that brought it.
const spdxURI = "https://spdx.dev/Document"

// withLayers completes the statement of a scanner about t, whose layers are known. What is no SPDX document stays as it is.
func (x *exporting) withLayers(ctx context.Context, t *target, predicate json.RawMessage) (json.RawMessage, error) {
	var doc map[string]any
	dec := json.NewDecoder(bytes.NewReader(predicate))
	dec.UseNumber()
	if err := dec.Decode(&doc); err != nil || doc["spdxVersion"] == nil {
		return predicate, nil
	}
	files, _ := doc["files"].([]any)
	finder := &layerFinder{x: x, t: t, pending: len(t.layers), found: map[string]digest.Digest{}}
	if len(t.blobs) != len(t.layers) {
		finder.pending = 0
	}
	for _, one := range files {
		f, _ := one.(map[string]any)
		name, _ := f["fileName"].(string)
		if comment, _ := f["comment"].(string); name == "" || comment != "" {
			continue
		}
		layer, err := finder.find(ctx, name)
		if err != nil {
			return nil, err
		}
		if layer != "" {
			f["comment"] = "layerID: " + layer.String()
		}
	}
	info, _ := doc["creationInfo"].(map[string]any)
	if info == nil {
		info = map[string]any{}
		doc["creationInfo"] = info
	}
	creators, _ := info["creators"].([]any)
	info["creators"] = append(creators, "Tool: corten-"+version.Version)
	return json.Marshal(doc)
}

// layerFinder finds the layers that brought files. Layers are looked into from the topmost down, and no further than is needed.
type layerFinder struct {
	x       *exporting
	t       *target
	pending int // so many of the lowest layers were not looked into
	found   map[string]digest.Digest
}

// find gives the digest of the layer as it goes out; "" when no layer has the file.
func (f *layerFinder) find(ctx context.Context, name string) (digest.Digest, error) {
	name = path.Join("/", name)
	for f.found[name] == "" && f.pending > 0 {
		f.pending--
		if err := f.look(ctx, f.pending); err != nil {
			return "", err
		}
	}
	return f.found[name], nil
}

// look notes the files of a layer that no layer above it has.
func (f *layerFinder) look(ctx context.Context, i int) (err error) {
	chain, blob := f.t.layers[i].Chain, f.t.blobs[i].Digest
	r := f.x.stream(ctx, func(ctx context.Context, w io.Writer) error { return f.x.Trees.LayerTar(ctx, chain, w) })
	defer func() { err = errors.Join(err, r.Close()) }()
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		name := path.Join("/", h.Name)
		if strings.HasPrefix(path.Base(name), ".wh.") {
			continue // takes files away
		}
		if f.found[name] == "" {
			f.found[name] = blob
		}
	}
}
