package server

import (
	"context"
	"encoding/json"
	"errors"
	"strings"

	wire "github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/storage"

	"corten.dev/corten/internal/container"
	"corten.dev/corten/internal/engine/images"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/image"
)

// imageSummary is one line of images; until 1.43 it said its size twice.
type imageSummary struct {
	wire.Summary
	VirtualSize *int64 `json:",omitempty"`
}

// imageLine converts one line. shared is nil when shared sizes were not asked for.
func imageLine(img images.Summary, shared map[string]int64, version int) imageSummary {
	out := imageSummary{Summary: wire.Summary{
		ID: img.ID.String(), Labels: img.Config.Config.Labels, RepoTags: orEmpty(img.Tags), RepoDigests: orEmpty(img.Digests),
		Size: img.Size, SharedSize: -1, Containers: int64(img.Containers),
	}}
	if img.Config.Created != nil {
		out.Created = img.Config.Created.Unix()
	}
	if size, ok := shared[out.ID]; ok {
		out.SharedSize = size
	}
	if version < 51 {
		out.Containers = -1
	}
	if version < 44 {
		out.VirtualSize = &out.Size
	}
	if version < 43 {
		if len(out.RepoTags) == 0 && len(out.RepoDigests) == 0 {
			out.RepoTags, out.RepoDigests = []string{"<none>:<none>"}, []string{"<none>@<none>"}
		}
	}
	return out
}

// sharedSizes sums for each image the layers that another image has too.
func (s *Server) sharedSizes(ctx context.Context, list []images.Summary) (map[string]int64, error) {
	type layer struct {
		size  int64
		users int
	}
	layers := map[string]*layer{}
	chains := make(map[string][]*layer, len(list))
	for _, img := range list {
		sizes, err := s.layerSizes(ctx, img.Image)
		if err != nil {
			return nil, err
		}
		chain := ""
		for i, diff := range img.Config.RootFS.DiffIDs {
			chain += " " + diff.String()
			if layers[chain] == nil {
				layers[chain] = &layer{size: sizes[i]}
			}
			layers[chain].users++
			chains[img.ID.String()] = append(chains[img.ID.String()], layers[chain])
		}
	}
	out := make(map[string]int64, len(list))
	for id, chain := range chains {
		out[id] = 0
		for _, l := range chain {
			if l.users > 1 {
				out[id] += l.size
			}
		}
	}
	return out, nil
}

// layerSizes gives the size of each layer, lowest first, from the image's history.
func (s *Server) layerSizes(ctx context.Context, img image.Image) ([]int64, error) {
	sizes := make([]int64, len(img.Config.RootFS.DiffIDs))
	if len(sizes) == 1 {
		sizes[0] = img.Size
		return sizes, nil
	}
	history, err := s.Images.History(ctx, img.ID.String())
	if err != nil {
		return nil, err
	}
	next := 0
	for i := len(history) - 1; i >= 0 && next < len(sizes); i-- {
		// The config's history is oldest first and says which steps made no layer.
		if n := len(history) - 1 - i; n < len(img.Config.History) && img.Config.History[n].EmptyLayer {
			continue
		}
		sizes[next] = history[i].Size
		next++
	}
	return sizes, nil
}

// oldImageFields are what image inspection said in older versions only.
type oldImageFields struct {
	Parent          *string     `json:",omitempty"` // until 1.51
	DockerVersion   *string     `json:",omitempty"`
	Comment         *string     `json:",omitempty"`
	Author          *string     `json:",omitempty"`
	VirtualSize     *int64      `json:",omitempty"` // until 1.43
	Container       *string     `json:",omitempty"` // until 1.44
	ContainerConfig *configView `json:",omitempty"`
}

// layerData says where an image's layers lie, in the words of Docker's overlay2: the topmost one, and those below it.
func (s *Server) layerData(img image.Image) (*storage.DriverData, error) {
	out := &storage.DriverData{Name: s.Driver, Data: map[string]string{}}
	if s.Layers == nil {
		return out, nil
	}
	dirs, err := s.Layers(img.Chain)
	if errors.Is(err, errs.NotFound) || len(dirs) == 0 { // an image that is known but not unpacked
		return out, nil
	}
	if err != nil {
		return nil, err
	}
	out.Data["UpperDir"] = dirs[0]
	if len(dirs) > 1 {
		out.Data["LowerDir"] = strings.Join(dirs[1:], ":")
	}
	return out, nil
}

// imageInspection converts an image for inspect.
func imageInspection(img image.Image, driver *storage.DriverData, version int) (map[string]any, error) {
	cfg := img.Config
	base := wire.InspectResponse{
		ID: img.ID.String(), RepoTags: orEmpty(img.Tags), RepoDigests: orEmpty(img.Digests), Comment: cfg.Comment, Author: cfg.Author,
		Architecture: cfg.Architecture, Variant: cfg.Variant, Os: cfg.OS, OsVersion: cfg.OSVersion, Size: img.Size,
		GraphDriver: driver,
		RootFS:      wire.RootFS{Type: cfg.RootFS.Type},
		Metadata:    wire.Metadata{LastTagTime: img.Tagged},
	}
	switch {
	case cfg.Created != nil:
		base.Created = stamp(*cfg.Created)
	case version < 44:
		base.Created = "0001-01-01T00:00:00Z"
	}
	for _, diff := range cfg.RootFS.DiffIDs {
		base.RootFS.Layers = append(base.RootFS.Layers, diff.String())
	}
	var old oldImageFields
	empty := ""
	if version < 52 {
		old.Parent, old.DockerVersion, old.Comment, old.Author = &empty, &empty, &cfg.Comment, &cfg.Author
	}
	if version < 45 {
		old.Container, old.ContainerConfig = &empty, &configView{Config: fromConfig(container.Config{}), OnBuild: []string(nil)}
	}
	if version < 44 {
		old.VirtualSize = &img.Size
	}
	out := map[string]any{}
	for _, part := range []any{base, old} {
		if err := merge(out, part); err != nil {
			return nil, err
		}
	}
	var err error
	out["Config"], err = imageConfig(cfg.Config, version)
	return out, err
}

// imageConfig is the Config of an image: until 1.49 in the shape of a container's, until 1.51 with all its fields, since then only what is set.
func imageConfig(run image.RunConfig, version int) (map[string]any, error) {
	full := fromConfig(container.Config{RunConfig: run})
	out := map[string]any{}
	if err := merge(out, full); err != nil {
		return nil, err
	}
	if version < 52 {
		if out["OnBuild"] == nil {
			out["OnBuild"] = nil // said, as null
		}
	}
	if version >= 50 {
		for _, field := range []string{"Hostname", "Domainname", "AttachStdin", "AttachStdout", "AttachStderr", "Tty", "OpenStdin", "StdinOnce", "Image", "NetworkDisabled", "StopTimeout"} {
			delete(out, field)
		}
	}
	if version >= 52 {
		for field, set := range map[string]bool{
			"Cmd": len(run.Cmd) > 0, "Entrypoint": len(run.Entrypoint) > 0, "Env": len(run.Env) > 0, "Labels": len(run.Labels) > 0, "OnBuild": len(run.OnBuild) > 0,
			"User": run.User != "", "Volumes": len(run.Volumes) > 0, "WorkingDir": run.WorkingDir != "",
		} {
			if !set {
				delete(out, field)
			}
		}
	}
	return out, nil
}

// merge adds the JSON fields of a struct to m.
func merge(m map[string]any, part any) error {
	b, err := json.Marshal(part)
	if err != nil {
		return err
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(b, &fields); err != nil {
		return err
	}
	for name, value := range fields {
		m[name] = value
	}
	return nil
}
