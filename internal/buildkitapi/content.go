package buildkitapi

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"sync"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	control "github.com/moby/buildkit/api/services/control"
	"github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/proto"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/build/frontend"
	"corten.dev/corten/internal/engine/builds"
	"corten.dev/corten/internal/errs"
)

// contents is containerd's content API, of which BuildKit's clients read what a record of history names: what happened in a build, and how its results came to be. Nothing can be written.
type contents struct {
	contentapi.UnimplementedContentServer
	*Door
}

// pastLogs are the digests under which what happened in builds was named to clients: the bytes are made of history each time.
type pastLogs struct {
	mu   sync.Mutex // guards refs
	refs map[digest.Digest]string
}

// maxLogRefs bounds how many digests are remembered; history keeps fewer builds.
const maxLogRefs = 200

func (p *pastLogs) note(dgst digest.Digest, ref string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.refs == nil || len(p.refs) >= maxLogRefs {
		p.refs = map[digest.Digest]string{}
	}
	p.refs[dgst] = ref
}

func (p *pastLogs) ref(dgst digest.Digest) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.refs[dgst]
}

// logs are what happened in a build as one blob: messages of StatusResponse, each after its length (4 bytes, little endian).
func (d *Door) logs(ctx context.Context, ref string) ([]byte, error) {
	var logs bytes.Buffer // history bounds what it keeps of a build
	marshal := proto.MarshalOptions{Deterministic: true}
	err := d.Builds.Status(ctx, ref, func(st build.Status) error {
		return eachMessage(st, func(msg *control.StatusResponse) error {
			raw, err := marshal.Marshal(msg)
			if err != nil {
				return err
			}
			logs.Write(binary.LittleEndian.AppendUint32(nil, uint32(len(raw))))
			logs.Write(raw)
			return nil
		})
	})
	return logs.Bytes(), err
}

// nameLogs gives the record of a build that is over the digest of what happened in it.
func (d *Door) nameLogs(ctx context.Context, b builds.Build, rec *control.BuildHistoryRecord) error {
	if b.Completed.IsZero() {
		return nil
	}
	raw, err := d.logs(ctx, b.Ref)
	if errors.Is(err, errs.NotFound) {
		return nil // forgotten meanwhile
	}
	if err != nil {
		return err
	}
	dgst := digest.FromBytes(raw)
	rec.Logs = &control.Descriptor{MediaType: statusType, Digest: dgst.String(), Size: int64(len(raw))}
	d.pastLogs.note(dgst, b.Ref)
	return nil
}

// blob finds what a record named.
func (c contents) blob(ctx context.Context, text string) ([]byte, error) {
	dgst, err := digest.Parse(text)
	if err != nil {
		return nil, errs.New(errs.Invalid, "digest %q: %w", text, err)
	}
	if ref := c.pastLogs.ref(dgst); ref != "" {
		if raw, err := c.logs(ctx, ref); err == nil && digest.FromBytes(raw) == dgst {
			return raw, nil
		}
	}
	return c.Builds.Document(ctx, dgst)
}

// Info implements the content API.
func (c contents) Info(ctx context.Context, req *contentapi.InfoRequest) (*contentapi.InfoResponse, error) {
	raw, err := c.blob(ctx, req.Digest)
	if err != nil {
		return nil, frontend.WireError(ctx, err)
	}
	return &contentapi.InfoResponse{Info: &contentapi.Info{Digest: req.Digest, Size: int64(len(raw))}}, nil
}

// Read implements the content API.
func (c contents) Read(req *contentapi.ReadContentRequest, stream contentapi.Content_ReadServer) error {
	raw, err := c.blob(stream.Context(), req.Digest)
	if err == nil && (req.Offset < 0 || req.Size < 0 || req.Offset > int64(len(raw))) {
		err = errs.New(errs.Invalid, "blob %s has %d bytes: nothing is at %d", req.Digest, len(raw), req.Offset)
	}
	if err != nil {
		return frontend.WireError(stream.Context(), err)
	}
	end := int64(len(raw))
	if req.Size > 0 {
		end = min(end, req.Offset+req.Size)
	}
	for at := req.Offset; at < end; {
		next := min(end, at+maxLogs)
		if err := stream.Send(&contentapi.ReadContentResponse{Offset: at, Data: raw[at:next]}); err != nil {
			return err
		}
		at = next
	}
	return nil
}
