package ops

import (
	"context"
	"path"

	"github.com/moby/buildkit/solver/pb"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/build/checksum/pick"
)

// Tree makes layers of what is chosen of a directory in place, at the same paths. volatile: it changed meanwhile, so that it is not what its checksum says.
func (o *Ops) Tree(ctx context.Context, files *build.Files, sel pick.Selection) (build.Output, bool, error) {
	want, err := o.sums.Files(ctx, files, sel)
	if err != nil {
		return build.Output{}, false, err
	}
	src := source{files: files}
	tree, done, err := o.openSource(ctx, src)
	if err != nil {
		return build.Output{}, false, err
	}
	defer done()
	w, err := o.begin(ctx, "")
	if err != nil {
		return build.Output{}, false, err
	}
	a := &pb.FileActionCopy{Src: sel.Path, Dest: path.Join("/", sel.Path), Mode: -1, Timestamp: -1, CreateDestPath: true}
	c, err := newCopier(w, a, nil, src)
	if err == nil {
		var got = want
		got, err = c.all(ctx, tree, sel)
		if err == nil {
			chain, err := w.finish(ctx)
			return build.Output{Chain: chain}, got != want, err
		}
	}
	w.drop(ctx)
	return build.Output{}, false, err
}
