package builds

import (
	"context"
	"errors"
	"io/fs"
	"path"
	"strings"

	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/frontend/dockerui"
	gateway "github.com/moby/buildkit/frontend/gateway/client"

	"corten.dev/corten/internal/errs"
)

// maxFetched bounds one file.
const maxFetched = 4 << 20

// Fetch implements [Planner]. It is a build that nobody keeps, so that addresses mean what they mean in builds: the same cache, credentials, agents and limits.
func (s *Service) Fetch(ctx context.Context, req FetchRequest) (files []BakeFile, err error) {
	_, err = s.Build(ctx, Request{Internal: true, Session: req.Session, Gateway: func(ctx context.Context, gw gateway.Client) (*gateway.Result, error) {
		var err error
		files, err = fetch(ctx, gw, req)
		return gateway.NewResult(), err
	}})
	return files, err
}

func fetch(ctx context.Context, gw gateway.Client, req FetchRequest) (files []BakeFile, err error) {
	st, isGit, err := dockerui.DetectGitContext(req.Address, nil)
	if isGit && err != nil {
		return nil, errs.New(errs.Invalid, "%s: %w", req.Address, err)
	}
	name := ""
	if !isGit {
		var ok bool
		if st, name, ok = dockerui.DetectHTTPContext(req.Address); !ok {
			return nil, errs.New(errs.Invalid, "%s is no address of a git repository or a file", req.Address)
		}
	}
	ref, err := fetched(ctx, gw, *st)
	if err != nil {
		return nil, err
	}
	if name != "" {
		data, err := readWhole(ctx, ref, name)
		archive := err == nil && isArchive(data)
		switch {
		case errors.Is(err, errs.Invalid): // too large for a file of ours
			archive = true
		case err != nil:
			return nil, err
		}
		if !archive {
			base, _, _ := strings.Cut(path.Base(req.Address), "?")
			return []BakeFile{{Name: base, Data: data}}, nil
		}
		unpacked := llb.Scratch().File(llb.Copy(*st, name, "/", &llb.CopyInfo{AttemptUnpack: true}), llb.WithCustomName("[internal] unpack "+req.Address))
		if ref, err = fetched(ctx, gw, unpacked); err != nil {
			return nil, err
		}
	}
	if len(req.Names) == 0 {
		return nil, errs.New(errs.Invalid, "%s is no file", req.Address)
	}
	for _, name := range req.Names {
		data, err := readWhole(ctx, ref, name)
		if errors.Is(err, errs.NotFound) || errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		files = append(files, BakeFile{Name: name, Data: data})
	}
	return files, nil
}

func fetched(ctx context.Context, gw gateway.Client, st llb.State) (gateway.Reference, error) {
	def, err := st.Marshal(ctx)
	if err != nil {
		return nil, err
	}
	res, err := gw.Solve(ctx, gateway.SolveRequest{Definition: def.ToPB(), Evaluate: true})
	if err != nil {
		return nil, err
	}
	return res.SingleRef()
}

// readWhole reads a file; errs.Invalid when it is too large.
func readWhole(ctx context.Context, ref gateway.Reference, name string) ([]byte, error) {
	st, err := ref.StatFile(ctx, gateway.StatRequest{Path: name})
	if err != nil {
		return nil, err
	}
	if st.Size > maxFetched {
		return nil, errs.New(errs.Invalid, "%s is larger than %d bytes", name, maxFetched)
	}
	return ref.ReadFile(ctx, gateway.ReadRequest{Filename: name})
}

// isArchive tells what is compressed, or a tar, from a text.
func isArchive(head []byte) bool {
	for _, magic := range []string{"\x1f\x8b\x08", "BZh", "\xfd7zXZ\x00", "\x28\xb5\x2f\xfd"} {
		if strings.HasPrefix(string(head[:min(len(head), 8)]), magic) {
			return true
		}
	}
	return len(head) >= 262 && string(head[257:262]) == "ustar"
}
