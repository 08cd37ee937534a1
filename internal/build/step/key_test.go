package step

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/proto"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/snapshot"
)

// sums are checksums by chain and path.
type sums map[string]string

func (s sums) Checksum(_ context.Context, _ build.Env, in build.Output, path string) (digest.Digest, error) {
	if v, ok := s[string(in.Chain)+" "+path]; ok {
		return digest.FromString(v), nil
	}
	return "", errs.New(errs.NotFound, "no %s", path)
}

func exampleExec() *pb.ExecOp {
	return &pb.ExecOp{
		Meta: &pb.Meta{Args: []string{"make"}, Env: []string{"A=1"}, Cwd: "/", ProxyEnv: &pb.ProxyEnv{HttpProxy: "one"}, ExtraHosts: []*pb.HostIP{{Host: "db", IP: "10.0.0.1"}}},
		Mounts: []*pb.Mount{
			{Dest: "/", Input: 0, Output: 0},
			{Dest: "/src", Input: 1, Output: -1, Readonly: true, Selector: "/a"},
			{Dest: "/c", Input: -1, Output: -1, MountType: pb.MountType_CACHE, CacheOpt: &pb.CacheOpt{ID: "c"}},
			{Dest: "/s", Input: -1, Output: -1, MountType: pb.MountType_SECRET, SecretOpt: &pb.SecretOpt{ID: "s"}},
		},
	}
}

func keyOf(t *testing.T, s *Steps, exec *pb.ExecOp, platform *pb.Platform, chains ...snapshot.ChainID) digest.Digest {
	t.Helper()
	in := make([]build.Output, len(chains))
	for i, c := range chains {
		in[i].Chain = c
	}
	v := &build.Vertex{Op: &pb.Op{Op: &pb.Op_Exec{Exec: exec}, Platform: platform}, Inputs: make([]build.Edge, len(in))}
	op, err := s.Make(v)
	if err != nil {
		t.Fatal(err)
	}
	key, err := op.Key(t.Context(), build.Env{}, in)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func TestKey(t *testing.T) {
	s := &Steps{opts: Options{Checksums: sums{"one /a": "x", "two /a": "x", "two /b": "x", "three /a": "y", "one /": "whole one", "two /": "whole two"}}}
	base := keyOf(t, s, exampleExec(), nil, "root", "one")
	same := map[string]func(e *pb.ExecOp) []snapshot.ChainID{
		"proxies":       func(e *pb.ExecOp) []snapshot.ChainID { e.Meta.ProxyEnv.HttpProxy = "two"; return nil },
		"addresses":     func(e *pb.ExecOp) []snapshot.ChainID { e.Meta.ExtraHosts[0].IP = "10.0.0.2"; return nil },
		"id of a cache": func(e *pb.ExecOp) []snapshot.ChainID { e.Mounts[2].CacheOpt.ID = "d"; return nil },
		"equal content": func(e *pb.ExecOp) []snapshot.ChainID { return []snapshot.ChainID{"root", "two"} },
		"at another place": func(e *pb.ExecOp) []snapshot.ChainID {
			e.Mounts[1].Selector = "b"
			return []snapshot.ChainID{"root", "two"}
		},
		"result of a cache": func(e *pb.ExecOp) []snapshot.ChainID { e.Mounts[1].ResultID = "r"; return nil },
	}
	other := map[string]func(e *pb.ExecOp) []snapshot.ChainID{
		"args":            func(e *pb.ExecOp) []snapshot.ChainID { e.Meta.Args = []string{"make", "all"}; return nil },
		"environment":     func(e *pb.ExecOp) []snapshot.ChainID { e.Meta.Env = nil; return nil },
		"network":         func(e *pb.ExecOp) []snapshot.ChainID { e.Network = pb.NetMode_NONE; return nil },
		"security":        func(e *pb.ExecOp) []snapshot.ChainID { e.Security = pb.SecurityMode_INSECURE; return nil },
		"host names":      func(e *pb.ExecOp) []snapshot.ChainID { e.Meta.ExtraHosts[0].Host = "dc"; return nil },
		"name of secret":  func(e *pb.ExecOp) []snapshot.ChainID { e.Mounts[3].SecretOpt.ID = "t"; return nil },
		"the root":        func(e *pb.ExecOp) []snapshot.ChainID { return []snapshot.ChainID{"root2", "one"} },
		"other content":   func(e *pb.ExecOp) []snapshot.ChainID { return []snapshot.ChainID{"root", "three"} },
		"target of mount": func(e *pb.ExecOp) []snapshot.ChainID { e.Mounts[1].Dest = "/source"; return nil },
	}
	for kind, cases := range map[bool]map[string]func(*pb.ExecOp) []snapshot.ChainID{true: same, false: other} {
		for name, change := range cases {
			e := exampleExec()
			chains := change(e)
			if chains == nil {
				chains = []snapshot.ChainID{"root", "one"}
			}
			if got := keyOf(t, s, e, nil, chains...); (got == base) != kind {
				t.Errorf("%s: equal key is %v", name, got == base)
			}
		}
	}
	if keyOf(t, s, exampleExec(), &pb.Platform{OS: "linux", Architecture: "riscv64"}, "root", "one") == base {
		t.Error("the platform is not part of the key")
	}
	// What a step hands on counts as a whole, also when the step saw only a part of it: else files of another build would come along.
	e := exampleExec()
	e.Mounts[1].Readonly, e.Mounts[1].Output = false, 1
	if keyOf(t, s, e, nil, "root", "one") == keyOf(t, s, e, nil, "root", "two") {
		t.Error("an output counts as the part that the step saw")
	}
	// A hand that is dealt the same cards: the op itself is never changed.
	before := proto.Clone(e).(*pb.ExecOp)
	keyOf(t, s, e, nil, "root", "one")
	if !proto.Equal(before, e) {
		t.Error("the op was changed by its key")
	}
}

// A layer that is not here is brought before its files are read; a path that is not there is named.
func TestKeyBrings(t *testing.T) {
	s := &Steps{opts: Options{Checksums: sums{"brought /a": "x", "one /a": "x"}}}
	want := keyOf(t, s, exampleExec(), nil, "root", "one")
	v := &build.Vertex{Op: &pb.Op{Op: &pb.Op_Exec{Exec: exampleExec()}}, Inputs: make([]build.Edge, 2)}
	op, err := s.Make(v)
	if err != nil {
		t.Fatal(err)
	}
	env := build.Env{Bring: func(_ context.Context, i int) (build.Output, error) {
		return build.Output{Chain: map[int]snapshot.ChainID{1: "brought"}[i]}, nil
	}}
	in := []build.Output{{Chain: "root"}, {Chain: "elsewhere"}}
	if got, err := op.Key(t.Context(), env, in); got != want || err != nil {
		t.Error(got, err)
	}
	env.Bring = func(context.Context, int) (build.Output, error) { return build.Output{Chain: "empty"}, nil }
	if _, err := op.Key(t.Context(), env, in); !errors.Is(err, errs.NotFound) || !strings.Contains(err.Error(), `"/a": not found`) {
		t.Error(err)
	}
}

func FuzzCheck(f *testing.F) {
	data, err := proto.Marshal(exampleExec())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data, 2)
	f.Fuzz(func(t *testing.T, data []byte, inputs int) {
		var e pb.ExecOp
		if proto.Unmarshal(data, &e) != nil || inputs < 0 || inputs > 100 {
			return
		}
		err := check(&e, inputs)
		if err != nil {
			if !errors.Is(err, errs.Invalid) && !errors.Is(err, errs.NotImplemented) {
				t.Errorf("%v is of no kind", err)
			}
			return
		}
		for _, m := range e.Mounts { // what the rest relies on
			if m.Input >= int64(inputs) || m.Input < -1 || m.MountType == pb.MountType_SECRET && m.SecretOpt.ID == "" {
				t.Errorf("%v was let through", m)
			}
		}
	})
}
