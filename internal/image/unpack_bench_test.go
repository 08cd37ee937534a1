package image_test

import (
	"archive/tar"
	"bytes"
	stdgzip "compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/manifest"
	"corten.dev/corten/internal/reference"
)

// benchImage is an image like a distribution with programs on it: five layers, many small files and few large ones, compressible to about one half. Its size in MB
// is CORTEN_BENCH_MB, 200 when that is not set.
func benchImage(b *testing.B) (r remote, unpacked int64) {
	b.Helper()
	mb := 200
	if s := os.Getenv("CORTEN_BENCH_MB"); s != "" {
		var err error
		if mb, err = strconv.Atoi(s); err != nil {
			b.Fatal(err)
		}
	}
	shares := []int{30, 25, 20, 15, 10}
	type made struct {
		blob []byte
		diff digest.Digest
		size int64
	}
	layers := make([]made, len(shares))
	var wg sync.WaitGroup
	for i, share := range shares {
		wg.Go(func() {
			var blob bytes.Buffer
			zw, _ := stdgzip.NewWriterLevel(&blob, 6)
			h := digest.SHA256.Digester()
			n := &counting{w: io.MultiWriter(zw, h.Hash())}
			benchLayer(b, n, i, int64(mb)<<20*int64(share)/100)
			if err := zw.Close(); err != nil {
				b.Error(err)
			}
			layers[i] = made{blob.Bytes(), h.Digest(), n.n}
		})
	}
	wg.Wait()
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: manifest.OCIManifest}
	for _, l := range layers {
		r.blobs, r.diffs = append(r.blobs, l.blob), append(r.diffs, l.diff)
		m.Layers = append(m.Layers, ocispec.Descriptor{MediaType: manifest.OCILayerGzip, Digest: digest.FromBytes(l.blob), Size: int64(len(l.blob))})
		unpacked += l.size
	}
	var err error
	if r.config, err = json.Marshal(map[string]any{"architecture": "amd64", "os": "linux", "rootfs": map[string]any{"type": "layers", "diff_ids": r.diffs}}); err != nil {
		b.Fatal(err)
	}
	m.Config = ocispec.Descriptor{MediaType: manifest.OCIConfig, Digest: digest.FromBytes(r.config), Size: int64(len(r.config))}
	raw, err := json.Marshal(m)
	if err != nil {
		b.Fatal(err)
	}
	if r.doc, err = manifest.Parse("", raw); err != nil {
		b.Fatal(err)
	}
	return r, unpacked
}

type counting struct {
	w io.Writer
	n int64
}

func (c *counting) Write(p []byte) (int, error) {
	c.n += int64(len(p))
	return c.w.Write(p)
}

func benchLayer(b *testing.B, w io.Writer, layer int, size int64) {
	rnd := rand.New(rand.NewPCG(uint64(layer), 7))
	words := make([][]byte, 1500)
	for i := range words {
		words[i] = fmt.Appendf(nil, "%x %x %x\n", rnd.Uint64()>>uint(rnd.IntN(60)), i, rnd.Uint64()>>uint(rnd.IntN(60)))
	}
	fill := func(buf []byte) {
		for at := 0; at < len(buf); {
			if rnd.IntN(60) == 0 { // something that does not compress
				n := min(len(buf)-at, 500)
				for i := range n {
					buf[at+i] = byte(rnd.Uint32())
				}
				at += n
				continue
			}
			at += copy(buf[at:], words[rnd.IntN(len(words))])
		}
	}
	tw := tar.NewWriter(w)
	add := func(h *tar.Header, data []byte) {
		h.ModTime, h.Size = time.Unix(1700000000, 0), int64(len(data))
		if err := tw.WriteHeader(h); err != nil {
			b.Error(err)
		}
		if _, err := tw.Write(data); err != nil {
			b.Error(err)
		}
	}
	var total int64
	buf := make([]byte, 12<<20)
	for dir := 0; total < size; dir++ {
		at := fmt.Sprintf("usr/share/l%d/d%d/", layer, dir)
		add(&tar.Header{Typeflag: tar.TypeDir, Name: at, Mode: 0o755}, nil)
		for f := range 20 {
			n := 200 + rnd.IntN(12_000)
			switch k := rnd.IntN(1000); {
			case k < 4:
				n = 2<<20 + rnd.IntN(10<<20)
			case k < 100:
				n = 30_000 + rnd.IntN(300_000)
			}
			fill(buf[:n])
			add(&tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("%sfile%d", at, f), Mode: 0o644}, buf[:n])
			total += int64(n)
		}
		add(&tar.Header{Typeflag: tar.TypeSymlink, Name: at + "link", Linkname: "file0", Mode: 0o777}, nil)
	}
	if err := tw.Close(); err != nil {
		b.Error(err)
	}
}

// BenchmarkUnpack is what a pull does with the layers once they are on this machine: everything but the network and the copy of the compressed blobs.
func BenchmarkUnpack(b *testing.B) {
	r, unpacked := benchImage(b)
	var packed int64
	for _, blob := range r.blobs {
		packed += int64(len(blob))
	}
	b.Logf("%d MB compressed, %d MB unpacked", packed>>20, unpacked>>20)
	b.SetBytes(unpacked)
	var cpu time.Duration // says more than the clock when the machine has other things to do
	defer func() { b.ReportMetric(float64(cpu.Milliseconds())/float64(b.N), "cpu-ms/op") }()
	for b.Loop() {
		b.StopTimer()
		h := open(b, b.TempDir())
		before := cpuTime(b)
		b.StartTimer()
		in, err := h.Receive(ctx, r.doc, r.config)
		if err != nil {
			b.Fatal(err)
		}
		var wg sync.WaitGroup
		for i := range r.blobs {
			wg.Go(func() {
				if err := in.Unpack(ctx, i, bytes.NewReader(r.blobs[i])); err != nil {
					b.Error(err)
				}
			})
		}
		wg.Wait()
		if _, err := in.Commit(ctx, []reference.Ref{{Domain: "docker.io", Path: "library/bench", Tag: "latest"}}); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		cpu += cpuTime(b) - before
		if err := in.Close(); err != nil {
			b.Fatal(err)
		}
		// The trees stay until the end: ext4 is slow to make files where others were deleted a moment ago.
		b.StartTimer()
	}
}

func cpuTime(b *testing.B) time.Duration {
	var ru unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &ru); err != nil {
		b.Fatal(err)
	}
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
}
