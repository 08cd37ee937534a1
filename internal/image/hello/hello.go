// Package hello is the image that the engine carries inside itself: corten/hello, one layer with one small static program.
//
// It owns the embedded program, which `make build` puts into bin/ beforehand. It promises the same archive, byte for byte, from the same program,
// so that the image has one id however often it is loaded.
package hello

import (
	"archive/tar"
	"bytes"
	"embed"
	"encoding/json"
	"io"
	"runtime"
	"time"

	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/image"
)

// Name is the image's name.
const Name = "corten/hello:latest"

//go:embed bin
var bin embed.FS

const program = "corten-hello"

// Archive returns the image as an archive for Load. errs.NotImplemented when this engine was built without the program.
func Archive() (io.Reader, error) {
	exe, err := bin.ReadFile("bin/" + program)
	if err != nil {
		return nil, errs.New(errs.NotImplemented, "this engine was built without the image %s: build it with `make build`", Name)
	}
	return archive(exe)
}

// created is fixed: the image is as old as its format, not as its build.
func created() time.Time { return time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC) }

func archive(exe []byte) (io.Reader, error) {
	layer, err := tarOf(
		file{"etc/", nil, 0o755},
		file{"etc/passwd", []byte("root:x:0:0:root:/:/sbin/nologin\nnobody:x:65534:65534:nobody:/:/sbin/nologin\n"), 0o644},
		file{"etc/group", []byte("root:x:0:\nnobody:x:65534:\n"), 0o644},
		file{program, exe, 0o755},
	)
	if err != nil {
		return nil, err
	}
	when := created()
	config, err := json.Marshal(image.Config{
		Created: &when, Architecture: runtime.GOARCH, OS: "linux", Author: "Corten",
		Config: image.RunConfig{
			Entrypoint:   []string{"/" + program},
			Env:          []string{"PATH=/"},
			ExposedPorts: map[string]struct{}{"8080/tcp": {}},
			Labels:       map[string]string{"org.opencontainers.image.title": "corten/hello", "org.opencontainers.image.licenses": "Apache-2.0"},
		},
		RootFS:  image.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.FromBytes(layer)}},
		History: []image.History{{Created: &when, CreatedBy: "COPY corten-hello /"}},
	})
	if err != nil {
		return nil, err
	}
	configName := digest.FromBytes(config).Encoded() + ".json"
	manifest, err := json.Marshal([]map[string]any{{"Config": configName, "RepoTags": []string{Name}, "Layers": []string{"layer.tar"}}})
	if err != nil {
		return nil, err
	}
	whole, err := tarOf(file{"manifest.json", manifest, 0o644}, file{configName, config, 0o644}, file{"layer.tar", layer, 0o644})
	if err != nil {
		return nil, err
	}
	return bytes.NewReader(whole), nil
}

type file struct {
	name string
	data []byte
	mode int64
}

func tarOf(files ...file) ([]byte, error) {
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, f := range files {
		hdr := &tar.Header{Typeflag: tar.TypeReg, Name: f.name, Mode: f.mode, Size: int64(len(f.data)), ModTime: created()}
		if f.data == nil {
			hdr.Typeflag = tar.TypeDir
		}
		if err := tw.WriteHeader(hdr); err != nil {
			return nil, err
		}
		if _, err := tw.Write(f.data); err != nil {
			return nil, err
		}
	}
	if err := tw.Close(); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}
