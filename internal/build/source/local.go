package source

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/errs"
)

// localID is what a local source asks for.
type localID struct {
	name    string
	session string
	opts    build.ContextOptions
}

// parseLocal reads "local://context".
func parseLocal(op *pb.SourceOp) (localID, error) {
	var id localID
	var err error
	if _, id.name, err = splitIdentifier(op.Identifier); err != nil {
		return id, err
	}
	if strings.IndexByte(id.name, 0) >= 0 {
		return id, errs.New(errs.Invalid, "source %q: a name has no zero byte", op.Identifier)
	}
	for k, v := range op.Attrs {
		var err error
		switch k {
		case pb.AttrLocalSessionID:
			id.session = v
		case pb.AttrLocalUniqueID: // makes vertices of builds differ; sessions do that here
		case pb.AttrIncludePatterns:
			err = json.Unmarshal([]byte(v), &id.opts.Include)
		case pb.AttrExcludePatterns:
			err = json.Unmarshal([]byte(v), &id.opts.Exclude)
		case pb.AttrFollowPaths:
			err = json.Unmarshal([]byte(v), &id.opts.Follow)
		case pb.AttrSharedKeyHint:
			id.opts.SharedKey = v
		case pb.AttrLocalDiffer:
			if id.opts.Differ = v; v != "" && v != pb.AttrLocalDifferNone && v != pb.AttrLocalDifferMetadata {
				err = errs.New(errs.Invalid, "none of none, metadata")
			}
		case pb.AttrMetadataTransfer:
			id.opts.MetadataOnly = v == "true"
		case pb.AttrMetadataTransferExclude:
			err = json.Unmarshal([]byte(v), &id.opts.MetadataExceptions)
		default:
			err = errs.New(errs.NotImplemented, "unknown attribute")
		}
		if err != nil {
			return id, errs.New(errs.Invalid, "source %s: attribute %s=%q: %w", op.Identifier, k, v, err)
		}
	}
	return id, nil
}

// localOp is a build context.
type localOp struct {
	sourceTraits
	id     localID
	vertex digest.Digest
}

// Key implements build.Op. See the package's words on why it names no content.
func (op *localOp) Key(ctx context.Context, env build.Env, _ []build.Output) (digest.Digest, error) {
	ses, err := session(ctx, env, op.id.session)
	if err != nil {
		return "", err
	}
	return keyOf("local", ses.ID, op.vertex.String()), nil
}

// Run implements build.Op. The context is let go when its session ends.
func (op *localOp) Run(ctx context.Context, env build.Env, _ []build.Output) (build.Made, error) {
	ses, err := session(ctx, env, op.id.session)
	if err != nil {
		return build.Made{}, err
	}
	if ses.Contexts == nil {
		return build.Made{}, errs.New(errs.NotFound, "context %s: the session offers no directories", op.id.name)
	}
	opts := op.id.opts
	opts.Progress = env.Progress
	files, release, err := ses.Contexts.Open(ctx, op.id.name, opts)
	if err != nil {
		return build.Made{}, fmt.Errorf("context %s: %w", op.id.name, err)
	}
	if release != nil && ses.OnEnd != nil {
		ses.OnEnd(release)
	}
	// What the directory holds beside is not part of the vertex, whoever opened it.
	chosen := *files
	chosen.Include, chosen.Exclude, chosen.Follow = opts.Include, opts.Exclude, opts.Follow
	if chosen.Owner == nil {
		chosen.Owner = &[2]uint32{}
	}
	return build.Made{Outputs: []build.Output{{Files: &chosen}}}, nil
}
