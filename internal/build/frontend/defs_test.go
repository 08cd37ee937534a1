package frontend_test

import (
	"testing"

	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/solver/pb"
)

// localDef is the definition of the build context.
func localDef(t *testing.T) *pb.Definition {
	t.Helper()
	def, err := llb.Local("context").Marshal(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return def.ToPB()
}
