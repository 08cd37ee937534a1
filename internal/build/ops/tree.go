package ops

import (
	"context"
	"fmt"
	"path"
	"sync"

	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/build/checksum/pick"
	"corten.dev/corten/internal/snapshot"
)

// maxTrees bounds the directories that are known to be layers.
const maxTrees = 256

// madeTrees remembers what directories were made layers.
type madeTrees struct {
	mu     sync.Mutex
	chains map[string]snapshot.ChainID // by checksum and selection
}

func (m *madeTrees) get(key string) snapshot.ChainID {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.chains[key]
}

func (m *madeTrees) put(key string, chain snapshot.ChainID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.chains == nil || len(m.chains) >= maxTrees {
		m.chains = map[string]snapshot.ChainID{}
	}
	m.chains[key] = chain
}

// Tree makes layers of what is chosen of a directory in place, at the same paths. Content that was made layers before, and is still here, costs no more than its checksum.
// volatile: it changed meanwhile, so that it is not what its checksum says.
func (o *Ops) Tree(ctx context.Context, files *build.Files, sel pick.Selection) (out build.Output, volatile bool, err error) {
	return o.tree(ctx, files, sel, "")
}

// tree is Tree for a directory whose checksum was want; empty: whatever it is now.
func (o *Ops) tree(ctx context.Context, files *build.Files, sel pick.Selection, want digest.Digest) (build.Output, bool, error) {
	sum, err := o.sums.Files(ctx, files, sel)
	if err != nil {
		return build.Output{}, false, err
	}
	if want == "" {
		want = sum
	}
	key := fmt.Sprintf("%s %+v", sum, sel)
	if chain := o.made.get(key); chain != "" {
		if _, err := o.trees.Stat(ctx, chain); err == nil {
			return build.Output{Chain: chain}, sum != want, nil
		}
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
	a := &pb.FileActionCopy{Src: sel.Path, Dest: path.Join("/", sel.Path), Mode: -1, Timestamp: -1, CreateDestPath: true, AllowEmptyWildcard: true}
	c, err := newCopier(w, a, nil, src)
	var got digest.Digest
	if err == nil {
		got, err = c.all(ctx, tree, sel)
	}
	if err != nil {
		w.drop(ctx)
		return build.Output{}, false, err
	}
	chain, err := w.finish(ctx)
	if err == nil && got == sum {
		o.made.put(key, chain)
	}
	return build.Output{Chain: chain}, got != want, err
}
