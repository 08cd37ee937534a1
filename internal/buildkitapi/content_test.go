package buildkitapi

import (
	"bytes"
	"context"
	"encoding/binary"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/content/proxy"
	"github.com/containerd/errdefs"
	control "github.com/moby/buildkit/api/services/control"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/protobuf/proto"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/engine/builds"
	"corten.dev/corten/internal/errs"
)

// recorded is a past whose builds name a document.
type recorded struct {
	past
	text []byte
}

func (r *recorded) Document(_ context.Context, dgst digest.Digest) ([]byte, error) {
	if dgst != digest.FromBytes(r.text) {
		return nil, errs.New(errs.NotFound, "document %s: not found", dgst)
	}
	return r.text, nil
}

// `buildx history export` wrote records without logs, and `--metadata-file` had no provenance: records named neither, and nobody served the blobs.
func TestRecordsNameWhatCanBeRead(t *testing.T) {
	now := time.Now()
	r := &recorded{text: bytes.Repeat([]byte("provenance "), 200_000)} // more than one message
	doc := builds.Document{Type: "https://slsa.dev/provenance/v1", Digest: digest.FromBytes(r.text), Size: int64(len(r.text))}
	several := []builds.Document{doc, doc}
	several[0].Platform, several[1].Platform = "linux/amd64", "linux/arm64"
	r.list = []builds.Build{{Ref: "one", Created: now, Completed: now, Provenance: []builds.Document{doc}}, {Ref: "two", Created: now, Completed: now, Provenance: several}, {Ref: "three", Created: now}}
	r.status = []build.Status{{Logs: []build.LogStatus{{Vertex: digest.FromString("v"), Data: []byte("said\n"), Timestamp: now}}}}
	client := dial(t, r)
	stream, err := client.ControlClient().ListenBuildHistory(t.Context(), &control.BuildHistoryRequest{EarlyExit: true})
	if err != nil {
		t.Fatal(err)
	}
	var recs []*control.BuildHistoryRecord
	for ev, err := stream.Recv(); err == nil; ev, err = stream.Recv() {
		recs = append(recs, ev.Record)
	}
	if len(recs) != 3 || recs[2].Logs != nil || recs[0].Logs == nil || len(recs[0].Result.GetAttestations()) != 1 || len(recs[1].Results) != 2 || recs[1].Results["linux/arm64"] == nil {
		t.Fatalf("%+v", recs)
	}
	store := proxy.NewContentStore(client.ContentClient())
	read := func(d *control.Descriptor) []byte {
		t.Helper()
		raw, err := content.ReadBlob(t.Context(), store, ocispec.Descriptor{Digest: digest.Digest(d.Digest), Size: d.Size})
		if err != nil || digest.FromBytes(raw).String() != d.Digest {
			t.Fatalf("%d bytes: %v", len(raw), err)
		}
		return raw
	}
	att := recs[0].Result.Attestations[0]
	if got := read(att); !bytes.Equal(got, r.text) || !strings.HasPrefix(att.Annotations["in-toto.io/predicate-type"], "https://slsa.dev/provenance/") || att.MediaType != "application/vnd.in-toto+json" {
		t.Errorf("%+v", att)
	}
	logs := read(recs[0].Logs)
	var msg control.StatusResponse
	if n := binary.LittleEndian.Uint32(logs); int(n) != len(logs)-4 {
		t.Fatalf("%d of %d bytes", n, len(logs))
	}
	if err := proto.Unmarshal(logs[4:], &msg); err != nil || len(msg.Logs) != 1 || string(msg.Logs[0].Msg) != "said\n" {
		t.Errorf("%+v %v", &msg, err)
	}
	for _, bad := range []digest.Digest{digest.FromString("none"), "sha256:x"} {
		if _, err := store.Info(t.Context(), bad); err == nil || bad.Validate() == nil && !errdefs.IsNotFound(err) {
			t.Errorf("%s: %v", bad, err)
		}
	}
}
