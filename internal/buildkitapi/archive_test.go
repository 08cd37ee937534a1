package buildkitapi

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	control "github.com/moby/buildkit/api/services/control"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/protobuf/proto"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/engine/builds"
	"corten.dev/corten/internal/errs"
)

// past is a service with builds that were.
type past struct {
	fake
	list []builds.Build
}

func (p *past) History(_ context.Context, _ bool, each func(builds.Build) error) error {
	for _, b := range p.list {
		if err := each(b); err != nil {
			return err
		}
	}
	return nil
}

// A .dockerbuild file is read as Docker Desktop and buildx do: layout, manifest, record, messages of status.
func TestArchive(t *testing.T) {
	now := time.Date(2026, 11, 22, 1, 2, 3, 0, time.UTC)
	p := &past{list: []builds.Build{
		{Ref: "one", Frontend: "dockerfile.v0", FrontendAttrs: map[string]string{"filename": "Dockerfile"}, Created: now, Completed: now.Add(time.Second), Steps: 3},
		{Ref: "two", Created: now, Completed: now, Error: "no"}, {Ref: "three", Created: now},
	}}
	p.status = []build.Status{{Vertexes: []build.VertexStatus{{Digest: digest.FromString("v"), Name: "RUN x"}}}, {Logs: []build.LogStatus{{Vertex: digest.FromString("v"), Data: []byte("said\n")}}}}
	door, err := New(Options{Builds: p, Version: "1"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := door.Close(); err != nil {
			t.Error(err)
		}
	}()
	var b bytes.Buffer
	for ref, kind := range map[string]error{"none": errs.NotFound, "three": errs.Conflict} {
		if err := door.Archive(t.Context(), []string{"one", ref}, &b); !errors.Is(err, kind) || b.Len() > 0 {
			t.Errorf("%s: %v, %d bytes", ref, err, b.Len())
		}
	}
	if err := door.Archive(t.Context(), []string{"one"}, &b); err != nil {
		t.Fatal(err)
	}
	files := unpack(t, &b)
	var index ocispec.Index
	var man ocispec.Manifest
	var rec struct {
		Ref, DefaultPlatform string
		FrontendAttrs        map[string]string
		CompletedAt          struct{ Seconds int64 }
		Logs                 struct{ Digest digest.Digest }
	}
	files.read(t, "index.json", &index)
	files.blob(t, index.Manifests[0], &man)
	files.blob(t, man.Config, &rec)
	if len(index.Manifests) != 1 || man.Config.MediaType != "application/vnd.buildkit.historyrecord.v0" || rec.Ref != "one" || rec.DefaultPlatform != "linux/amd64" || rec.FrontendAttrs["filename"] != "Dockerfile" {
		t.Errorf("%+v %+v %+v", index, man, rec)
	}
	if rec.Logs.Digest != man.Layers[0].Digest || man.Layers[0].MediaType != "application/vnd.buildkit.status.v0" || !strings.Contains(files[ocispec.ImageLayoutFile], "1.0.0") {
		t.Errorf("%+v", man.Layers)
	}
	var said string
	for raw := []byte(files["blobs/sha256/"+man.Layers[0].Digest.Encoded()]); len(raw) > 0; {
		n := binary.LittleEndian.Uint32(raw)
		var msg control.StatusResponse
		if err := proto.Unmarshal(raw[4:4+n], &msg); err != nil {
			t.Fatal(err)
		}
		raw = raw[4+n:]
		for _, v := range msg.Vertexes {
			said += v.Name + ": "
		}
		for _, l := range msg.Logs {
			said += string(l.Msg)
		}
	}
	if said != "RUN x: said\n" {
		t.Errorf("status says %q", said)
	}

	b.Reset()
	if err := door.Archive(t.Context(), []string{"one", "two"}, &b); err != nil {
		t.Fatal(err)
	}
	files = unpack(t, &b)
	var several ocispec.Index
	files.read(t, "index.json", &index)
	files.blob(t, index.Manifests[0], &several)
	if len(several.Manifests) != 2 || several.Manifests[1].Annotations["vnd.buildkit.history.reference"] != "two" {
		t.Errorf("%+v", several)
	}
}

type unpacked map[string]string

func unpack(t *testing.T, r io.Reader) unpacked {
	t.Helper()
	gz, err := gzip.NewReader(r)
	if err != nil {
		t.Fatal(err)
	}
	files := unpacked{}
	for tr := tar.NewReader(gz); ; {
		hdr, err := tr.Next()
		if err == io.EOF {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(tr)
		if err != nil || files[hdr.Name] != "" {
			t.Fatal(hdr.Name, err)
		}
		files[hdr.Name] = string(data)
	}
}

func (u unpacked) read(t *testing.T, name string, into any) {
	t.Helper()
	if err := json.Unmarshal([]byte(u[name]), into); err != nil {
		t.Fatalf("%s: %v: %q", name, err, u[name])
	}
}

func (u unpacked) blob(t *testing.T, desc ocispec.Descriptor, into any) {
	t.Helper()
	name := "blobs/sha256/" + desc.Digest.Encoded()
	if digest.FromString(u[name]) != desc.Digest || int64(len(u[name])) != desc.Size {
		t.Errorf("%s has other bytes than its descriptor says", name)
	}
	u.read(t, name, into)
}
