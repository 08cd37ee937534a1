package source

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/safefs"
	"corten.dev/corten/internal/snapshot"
	"corten.dev/corten/internal/tarfs"
)

// gitOp is a git source.
//
//	Key   ref ─ls-remote─▶ commit ─▶ key, by which an earlier checkout is found
//	Run   bare repository of the address ─fetch, shallow─▶ commit ─▶ work tree ─▶ subdirectory ─tar─▶ layer ─▶ record
type gitOp struct {
	sourceTraits
	s  *Sources
	id gitID
	looked
	at point
}

// point is what a ref was found to be.
type point struct {
	ref    string // as the remote names it; empty for a mere commit
	object string // a tag's own name, for annotated ones; else the commit's
	commit string
}

// Key implements build.Op.
func (op *gitOp) Key(ctx context.Context, env build.Env, _ []build.Output) (digest.Digest, error) {
	_, key, err := op.look(func() (build.Output, digest.Digest, error) {
		at, err := op.s.locate(ctx, env, op.id)
		if err != nil {
			return build.Output{}, "", err
		}
		op.mu.Lock()
		op.at = at
		op.mu.Unlock()
		return build.Output{}, keyOf("git", op.id.checkout(at.commit)), nil
	})
	return key, err
}

// Run implements build.Op.
func (op *gitOp) Run(ctx context.Context, env build.Env, in []build.Output) (build.Made, error) {
	key, err := op.Key(ctx, env, in)
	if err != nil {
		return build.Made{}, err
	}
	op.mu.Lock()
	at := op.at
	op.mu.Unlock()
	defer op.s.opts.Cache.Use(ctx, key)()
	chain, have, err := op.s.kept(ctx, key)
	if err != nil {
		return build.Made{}, err
	}
	if !have {
		if chain, err = op.s.checkout(ctx, env, op.id, at); err != nil {
			return build.Made{}, err
		}
		if err := op.s.keep(ctx, key, chain, "source.git.checkout", op.id.full()); err != nil {
			return build.Made{}, err
		}
		if err := op.s.collectRepositories(ctx); err != nil {
			op.s.opts.Log.Warn("old git repositories stay", "err", err)
		}
	}
	return build.Made{Outputs: []build.Output{{Chain: chain, Pin: at.commit}}, Cached: have}, nil
}

// locate asks the remote what the ref is, unless it is a commit already.
func (s *Sources) locate(ctx context.Context, env build.Env, id gitID) (at point, err error) {
	switch {
	case id.byCommit && isCommit(id.checksum):
		return point{object: id.checksum, commit: id.checksum}, nil
	case isCommit(id.ref):
		at = point{object: id.ref, commit: id.ref}
	default:
		if at, err = s.lsRemote(ctx, env, id); err != nil {
			return at, fmt.Errorf("git repository %s: %w", id.name(), err)
		}
	}
	if id.checksum != "" && !strings.HasPrefix(at.commit, id.checksum) && !strings.HasPrefix(at.object, id.checksum) {
		return at, errs.New(errs.Invalid, "git repository %s: expected checksum to match %s, got %s", id.name(), id.checksum, at.commit)
	}
	return at, nil
}

func (s *Sources) lsRemote(ctx context.Context, env build.Env, id gitID) (point, error) {
	g, release, err := s.gitRun(ctx, env, id)
	if err != nil {
		return point{}, err
	}
	defer release()
	args := []string{"ls-remote", "--", id.address()}
	if id.ref == "" {
		args = append(args, "HEAD")
	} else {
		args = append(args, id.ref, id.ref+"^{}")
	}
	out, err := g.run(ctx, g.tmp, false, args...)
	if err != nil {
		return point{}, err
	}
	return pick(out, id.ref)
}

// pick finds a ref in the answer of ls-remote: a branch before a tag, as checkout does.
func pick(out, ref string) (point, error) {
	refs := map[string]string{}
	for line := range strings.Lines(out) {
		if object, name, ok := strings.Cut(strings.TrimSpace(line), "\t"); ok && isCommit(object) {
			refs[name] = object
		}
	}
	names := []string{"HEAD"}
	if ref != "" {
		names = []string{ref, "refs/heads/" + ref, "refs/tags/" + ref, "refs/" + ref}
	}
	for _, name := range names {
		object, ok := refs[name]
		if !ok {
			continue
		}
		at := point{ref: name, object: object, commit: object}
		if peeled := refs[name+"^{}"]; peeled != "" {
			at.commit = peeled
		}
		return at, nil
	}
	if ref == "" {
		ref = "HEAD"
	}
	return point{}, errs.New(errs.NotFound, "repository does not contain ref %s", ref)
}

// repository names the bare repository of an address. Who is known to the host as somebody has one of his own: nobody gets what he could not fetch.
func (s *Sources) repository(ctx context.Context, env build.Env, id gitID) (string, error) {
	auth := ""
	if header, err := id.authorization(ctx, env); err != nil {
		return "", err
	} else if header != "" {
		sum := sha256.Sum256([]byte(header))
		auth = hex.EncodeToString(sum[:])
	}
	sum := sha256.Sum256([]byte(id.address() + "\x00" + auth))
	return hex.EncodeToString(sum[:]), nil
}

// checkout makes the layer of a commit.
func (s *Sources) checkout(ctx context.Context, env build.Env, id gitID, at point) (chain snapshot.ChainID, err error) {
	name, err := s.repository(ctx, env, id)
	if err != nil {
		return "", err
	}
	give, err := s.busy.take(ctx, "git "+name)
	if err != nil {
		return "", err
	}
	defer give()
	g, release, err := s.gitRun(ctx, env, id)
	if err != nil {
		return "", err
	}
	defer release()
	repo := filepath.Join(s.opts.Root, "git", name)
	defer func() {
		// The folder's time is when it was used last.
		err = errors.Join(err, os.Chtimes(repo, time.Now(), time.Now()))
	}()
	tree := filepath.Join(g.tmp, "tree")
	err = g.bring(ctx, repo, tree, id, &at)
	if err != nil && ctx.Err() == nil && spoilt(err) {
		// A git that was killed, or a host that went down, left it so: from the beginning.
		s.opts.Log.Warn("git repository is fetched again", "url", id.name(), "err", err)
		if err = errors.Join(os.RemoveAll(repo), os.RemoveAll(tree)); err == nil {
			err = g.bring(ctx, repo, tree, id, &at)
		}
	}
	if err != nil {
		return "", fmt.Errorf("git repository %s: %w", id.full(), err)
	}
	chain, err = s.pack(ctx, tree, id)
	if err != nil {
		return "", fmt.Errorf("git repository %s: %w", id.full(), err)
	}
	return chain, nil
}

// bring makes the work tree of a commit, ready to be packed.
func (g *gitRun) bring(ctx context.Context, repo, tree string, id gitID, at *point) error {
	if err := g.watched(ctx, repo, func(ctx context.Context) error { return g.fetch(ctx, repo, id, at) }); err != nil {
		return err
	}
	if err := g.watched(ctx, g.tmp, func(ctx context.Context) error { return g.worktree(ctx, repo, tree, id, *at) }); err != nil {
		return err
	}
	return g.settle(ctx, repo, tree, id, *at)
}

// spoilt tells whether git failed because of what it found on disk.
func spoilt(err error) bool {
	var git *gitError
	if !errors.As(err, &git) {
		return false
	}
	for _, sign := range []string{".lock", "corrupt", "bad object", "loose object", "unable to read", "missing blob", "missing tree", "not a git repository", "bad config", "unable to parse"} {
		if strings.Contains(git.whole, sign) {
			return true
		}
	}
	return false
}

// fetch brings the commit into the bare repository.
func (g *gitRun) fetch(ctx context.Context, repo string, id gitID, at *point) error {
	if _, err := os.Stat(filepath.Join(repo, "config")); err != nil {
		if err := os.RemoveAll(repo); err != nil { // half made
			return err
		}
		if _, err := g.run(ctx, g.tmp, false, "init", "--quiet", "--bare", repo); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(repo, "description"), []byte(id.name()+"\n"), 0o600); err != nil { // for people
			return err
		}
	}
	has := func() bool {
		_, err := g.run(ctx, repo, false, "cat-file", "-e", at.commit+"^{commit}")
		return err == nil
	}
	if has() {
		return g.peel(ctx, repo, at)
	}
	keep := "refs/corten/" + at.commit // so that it can be fetched from here
	var first error
	try := func(args ...string) bool {
		_, err := g.run(ctx, repo, true, append([]string{"fetch", "--quiet", "--force", "--no-tags", "--no-write-fetch-head"}, args...)...)
		if first == nil {
			first = err
		}
		return err == nil && has()
	}
	address := id.address()
	ways := [][]string{{"--depth=1", "--", address, "+" + at.object + ":" + keep}}
	if at.ref != "" && at.ref != "HEAD" {
		ways = append([][]string{{"--depth=1", "--", address, "+" + at.ref + ":" + keep}}, ways...)
	} else if at.ref == "HEAD" {
		ways = append([][]string{{"--depth=1", "--", address, "+HEAD:" + keep}}, ways...)
	}
	// Servers that give no commit by its name, and those that know nothing of depth: all that there is.
	everything := []string{"--", address, "+refs/heads/*:refs/corten/heads/*", "+refs/tags/*:refs/corten/tags/*"}
	if _, err := os.Stat(filepath.Join(repo, "shallow")); err == nil {
		ways = append(ways, append([]string{"--unshallow"}, everything...))
	}
	ways = append(ways, everything)
	for _, way := range ways {
		if try(way...) {
			return g.peel(ctx, repo, at)
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	if first != nil {
		return first
	}
	return errs.New(errs.NotFound, "repository does not contain ref %s", at.commit)
}

// peel turns the name of a tag into that of its commit.
func (g *gitRun) peel(ctx context.Context, repo string, at *point) error {
	out, err := g.run(ctx, repo, false, "rev-parse", "--verify", "--quiet", at.commit+"^{commit}")
	if err != nil {
		return err
	}
	at.commit = strings.TrimSpace(out)
	_, err = g.run(ctx, repo, false, "update-ref", "refs/corten/"+at.commit, at.commit)
	return err
}

// worktree checks the commit out, with its submodules.
func (g *gitRun) worktree(ctx context.Context, repo, tree string, id gitID, at point) error {
	if _, err := g.run(ctx, g.tmp, false, "init", "--quiet", tree); err != nil {
		return err
	}
	if _, err := g.run(ctx, tree, false, "remote", "add", "origin", id.address()); err != nil {
		return err
	}
	local := *g // only this one fetch may read a folder of this host
	local.env = append(append([]string{}, g.env...), "GIT_ALLOW_PROTOCOL=file")
	fetch := []string{"fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--depth=1", "--", "file://" + repo, "+refs/corten/" + at.commit + ":refs/corten/at"}
	if _, err := local.run(ctx, tree, false, fetch...); err != nil {
		return err
	}
	if _, err := g.run(ctx, tree, true, "-c", "advice.detachedHead=false", "checkout", "--quiet", "--detach", at.commit); err != nil {
		return err
	}
	if id.keepGitDir {
		name := at.ref
		if name == "" || name == "HEAD" || !strings.HasPrefix(name, "refs/tags/") {
			name = ""
		}
		if name != "" {
			if _, err := g.run(ctx, tree, false, "update-ref", name, at.commit); err != nil {
				return err
			}
		}
	}
	if _, err := g.run(ctx, tree, false, "update-ref", "-d", "refs/corten/at"); err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(tree, ".git/refs/corten")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if info, err := os.Lstat(filepath.Join(tree, ".gitmodules")); id.skipSubmodules || err != nil || !info.Mode().IsRegular() {
		return nil
	}
	_, err := g.run(ctx, tree, true, "submodule", "--quiet", "update", "--init", "--recursive", "--depth=1")
	return err
}

// settle gives the files the modes and times that do not depend on who checked them out, and removes what git needs for itself.
func (g *gitRun) settle(ctx context.Context, repo, tree string, id gitID, at point) error {
	when := time.Now()
	if id.mtimeOfCommit {
		out, err := g.run(ctx, repo, false, "show", "--no-patch", "--format=%ct", at.commit)
		if err != nil {
			return err
		}
		sec, err := strconv.ParseInt(strings.TrimSpace(out), 10, 64)
		if err != nil {
			return errs.New(errs.Invalid, "commit %s has no time", at.commit)
		}
		when = time.Unix(sec, 0)
	}
	keep := id.keepGitDir && id.subdir == ""
	return settleTree(ctx, tree, keep, when)
}

// settleTree walks a tree that is only ours, without following links.
func settleTree(ctx context.Context, tree string, keepGit bool, when time.Time) error {
	root, err := os.OpenRoot(tree)
	if err != nil {
		return err
	}
	defer root.Close()
	var walk func(dir string, git bool) error
	walk = func(dir string, git bool) error {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		f, err := root.Open(dir)
		if err != nil {
			return err
		}
		entries, err := f.ReadDir(-1)
		if err = errors.Join(err, f.Close()); err != nil {
			return err
		}
		for _, e := range entries {
			name := filepath.Join(dir, e.Name())
			inGit := git || e.Name() == ".git"
			switch {
			case e.Name() == ".git" && !keepGit: // git tracks no file of this name: it is its own, also in submodules
				if err := root.RemoveAll(name); err != nil {
					return err
				}
			case e.IsDir():
				if err := walk(name, inGit); err != nil {
					return err
				}
			case e.Type().IsRegular():
				if err := settleFile(root, name, inGit); err != nil {
					return err
				}
				fallthrough
			default:
				if err := lutimes(filepath.Join(tree, name), when); err != nil {
					return err
				}
			}
		}
		if err := root.Chmod(dir, 0o755); err != nil {
			return err
		}
		return root.Chtimes(dir, when, when)
	}
	return walk(".", false)
}

// settleFile gives a file one of the two modes that git knows.
func settleFile(root *os.Root, name string, inGit bool) error {
	if inGit {
		return nil
	}
	info, err := root.Lstat(name)
	if err != nil {
		return err
	}
	mode := os.FileMode(0o644)
	if info.Mode()&0o100 != 0 {
		mode = 0o755
	}
	return root.Chmod(name, mode)
}

// lutimes sets the time of a file or link itself.
func lutimes(path string, when time.Time) error {
	ts, err := unix.TimeToTimespec(when)
	if err != nil {
		return err
	}
	return unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
}

// pack makes the layer of a checkout's folder.
func (s *Sources) pack(ctx context.Context, tree string, id gitID) (snapshot.ChainID, error) {
	root, err := safefs.Root(tree)
	if err != nil {
		return "", err
	}
	defer root.Close()
	// A link of the repository may stand in the way: it leads nowhere but inside of the tree.
	dir, err := safefs.Open(root, "/"+id.subdir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return "", errs.New(errs.NotFound, "subdir %s: no such directory in the repository", id.subdir)
	}
	defer dir.Close()
	layer, err := s.layer(ctx, func(w io.Writer) error { return tarfs.Write(ctx, dir, w, tarfs.WriteOptions{WholeSeconds: true}) })
	return layer.Chain, err
}

func (s *Sources) resolveGit(ctx context.Context, op *pb.SourceOp, opt *sourceresolver.ResolveGitOpt, env build.Env) (*sourceresolver.ResolveGitResponse, error) {
	id, err := parseGit(op)
	if err != nil {
		return nil, err
	}
	if opt != nil && opt.ReturnObject {
		return nil, errs.New(errs.NotImplemented, "git repository %s: objects of commits are not given out", id.name())
	}
	at, err := s.locate(ctx, env, id)
	if err != nil {
		return nil, err
	}
	resp := &sourceresolver.ResolveGitResponse{Checksum: at.object, Ref: at.ref}
	if at.commit != at.object {
		resp.CommitChecksum = at.commit
	}
	return resp, nil
}
