package export

import (
	"testing"

	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/build"
)

// What a step is named in provenance does not depend on the session that it ran for.
func TestLastingNames(t *testing.T) {
	names := func(session string) [2]digest.Digest {
		src := &build.Vertex{Digest: digest.FromString("src " + session), Op: &pb.Op{Op: &pb.Op_Source{Source: &pb.SourceOp{Identifier: "local://context", Attrs: map[string]string{pb.AttrLocalSessionID: session}}}}}
		run := &build.Vertex{Digest: digest.FromString("run " + session), Op: &pb.Op{Inputs: []*pb.Input{{Digest: string(src.Digest)}}, Op: &pb.Op_Exec{Exec: &pb.ExecOp{Meta: &pb.Meta{Args: []string{"make"}}}}}}
		known := map[digest.Digest]digest.Digest{}
		return [2]digest.Digest{lasting(src, known), lasting(run, known)}
	}
	if a, b := names("a"), names("b"); a != b || a[0] == a[1] {
		t.Error(a, b)
	}
	plain := &build.Vertex{Digest: digest.FromString("plain"), Op: &pb.Op{Op: &pb.Op_Source{Source: &pb.SourceOp{Identifier: "docker-image://x"}}}}
	if got := lasting(plain, map[digest.Digest]digest.Digest{}); got != plain.Digest {
		t.Error("a step without a session has another name", got)
	}
}
