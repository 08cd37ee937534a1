package ship

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"corten.dev/corten/internal/manifest"
)

const (
	layers    = 5
	layerSize = 160 << 20
)

type madeImage struct {
	layers           int
	packed, unpacked int64
}

// makeImage writes an image into a registry: layers of files as a distribution has them (many small ones, some large), that compress to half.
func makeImage(ctx context.Context, addr, repo string) (madeImage, error) {
	made := madeImage{layers: layers}
	to := newRepo(addr, repo, 1)
	defer to.c.CloseIdleConnections()
	cfg := map[string]any{"architecture": "amd64", "os": "linux", "config": map[string]any{}, "rootfs": map[string]any{"type": "layers"}}
	var diffs []digest.Digest
	m := ocispec.Manifest{MediaType: manifest.OCIManifest}
	m.SchemaVersion = 2
	for i := range layers {
		f, err := os.CreateTemp("", "corten-bench-layer")
		if err != nil {
			return made, err
		}
		if err := os.Remove(f.Name()); err != nil {
			return made, err
		}
		d, diff, unpacked, err := writeLayer(f, int64(i), layerSize)
		if err == nil {
			_, err = f.Seek(0, io.SeekStart)
		}
		if err == nil {
			err = to.putBlob(ctx, d, f)
		}
		f.Close()
		if err != nil {
			return made, err
		}
		diffs = append(diffs, diff)
		m.Layers = append(m.Layers, d)
		made.packed, made.unpacked = made.packed+d.Size, made.unpacked+unpacked
	}
	cfg["rootfs"].(map[string]any)["diff_ids"] = diffs
	raw, err := json.Marshal(cfg)
	if err != nil {
		return made, err
	}
	m.Config = ocispec.Descriptor{MediaType: manifest.OCIConfig, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
	if err := to.putBlob(ctx, m.Config, bytes.NewReader(raw)); err != nil {
		return made, err
	}
	if raw, err = json.Marshal(m); err != nil {
		return made, err
	}
	return made, to.send(ctx, to.base+"manifests/1", m.MediaType, int64(len(raw)), bytes.NewReader(raw))
}

// writeLayer writes one compressed layer, the same for the same number.
func writeLayer(w io.Writer, n, size int64) (d ocispec.Descriptor, diff digest.Digest, unpacked int64, err error) {
	packed, plain := sha256.New(), sha256.New()
	var count counter
	zw := gzip.NewWriter(io.MultiWriter(w, packed, &count))
	tw := tar.NewWriter(io.MultiWriter(zw, plain))
	rng := rand.New(rand.NewPCG(uint64(n), 1))
	words := dictionary(rng)
	for file := 0; unpacked < size; file++ {
		length := 1<<10 + rng.IntN(30<<10)
		if file%50 == 0 {
			length = 4 << 20
		}
		dir := fmt.Sprintf("usr/share/layer%d/d%d/", n, file/64)
		if file%64 == 0 {
			if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755, ModTime: time.Unix(1e9, 0)}); err != nil {
				return d, "", 0, err
			}
		}
		if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("%sf%d", dir, file), Mode: 0o644, Size: int64(length), ModTime: time.Unix(1e9, 0)}); err != nil {
			return d, "", 0, err
		}
		if _, err := tw.Write(content(rng, words, length)); err != nil {
			return d, "", 0, err
		}
		unpacked += int64(length)
	}
	if err := tw.Close(); err != nil {
		return d, "", 0, err
	}
	if err := zw.Close(); err != nil {
		return d, "", 0, err
	}
	d = ocispec.Descriptor{MediaType: manifest.OCILayerGzip, Digest: digest.NewDigest(digest.SHA256, packed), Size: int64(count)}
	return d, digest.NewDigest(digest.SHA256, plain), unpacked, nil
}

type counter int64

func (c *counter) Write(p []byte) (int, error) { *c += counter(len(p)); return len(p), nil }

func dictionary(rng *rand.Rand) []string {
	words := make([]string, 4000)
	for i := range words {
		b := make([]byte, 3+rng.IntN(9))
		for j := range b {
			b[j] = byte('a' + rng.IntN(26))
		}
		words[i] = string(b)
	}
	return words
}

// content is text of random words with a part that does not compress, as programs are.
func content(rng *rand.Rand, words []string, length int) []byte {
	var b strings.Builder
	b.Grow(length + 64)
	for b.Len() < length {
		if rng.IntN(90) == 0 {
			for range 16 {
				v := rng.Uint64()
				b.Write([]byte{byte(v), byte(v >> 8), byte(v >> 16), byte(v >> 24), byte(v >> 32), byte(v >> 40), byte(v >> 48), byte(v >> 56)})
			}
			continue
		}
		b.WriteString(words[rng.IntN(1+rng.IntN(1+rng.IntN(len(words))))])
		b.WriteByte(' ')
	}
	return []byte(b.String()[:length])
}
