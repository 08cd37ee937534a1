package step

import (
	"context"

	"github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/proto"

	"corten.dev/corten/internal/build"
)

// Key implements [build.Op].
func (o *op) Key(ctx context.Context, env build.Env, in []build.Output) (digest.Digest, error) {
	data, err := proto.MarshalOptions{Deterministic: true}.Marshal(o.exec)
	return digest.FromBytes(data), err
}
