package ops

import (
	"context"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/proto"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/build/checksum"
	"corten.dev/corten/internal/build/checksum/pick"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/snapshot"
)

// fileOp is a list of actions. Numbers below len(v.Inputs) are the op's inputs, those from there on are the outputs of its actions; -1 is nothing (scratch).
type fileOp struct {
	o       *Ops
	v       *build.Vertex
	actions []*pb.FileAction
	inputs  int
	outputs []int // the value of each output
	uses    []int // how often a value is used
	direct  []int // how often as the tree that an action goes on with

	// What Key found of directories read in place: of sources, by action, and of inputs that actions go on with.
	sources, bases wholes
}

func newFileOp(o *Ops, v *build.Vertex, op *pb.FileOp) (*fileOp, error) {
	f := &fileOp{o: o, v: v, actions: op.GetActions(), inputs: len(v.Inputs)}
	values := f.inputs + len(f.actions)
	f.uses, f.direct = make([]int, values), make([]int, values)
	outs := map[int]int{}
	for i, a := range f.actions {
		if err := f.check(a, i); err != nil {
			return nil, fmt.Errorf("%s: %w", v.Name, err)
		}
		if a.Output < 0 {
			continue
		}
		if _, twice := outs[int(a.Output)]; twice {
			return nil, errs.New(errs.Invalid, "%s: output %d is made twice", v.Name, a.Output)
		}
		outs[int(a.Output)] = f.inputs + i
		f.uses[f.inputs+i]++
	}
	for i := range len(outs) {
		value, ok := outs[i]
		if !ok {
			return nil, errs.New(errs.Invalid, "%s: output %d is missing", v.Name, i)
		}
		f.outputs = append(f.outputs, value)
	}
	if len(outs) == 0 {
		return nil, errs.New(errs.Invalid, "%s: a file operation without output", v.Name)
	}
	return f, nil
}

// check looks at the numbers of an action. Only earlier actions may be used, so that there is no loop.
func (f *fileOp) check(a *pb.FileAction, i int) error {
	use := func(value int64, least int64) error {
		if value < least || value >= int64(f.inputs+i) {
			return errs.New(errs.Invalid, "action %d: there is no input %d", i, value)
		}
		if value >= 0 {
			f.uses[value]++
		}
		return nil
	}
	if err := use(a.Input, -1); err != nil {
		return err
	}
	if a.Input >= 0 {
		f.direct[a.Input]++
	}
	if a.GetCopy() != nil {
		if err := use(a.SecondaryInput, -1); err != nil {
			return err
		}
	}
	owner := ownerOf(a)
	for _, u := range []*pb.UserOpt{owner.GetUser(), owner.GetGroup()} {
		if by, ok := u.GetUser().(*pb.UserOpt_ByName); ok {
			if by.ByName == nil {
				return errs.New(errs.Invalid, "action %d: a name is missing", i)
			}
			if by.ByName.Input == a.Input {
				continue // the tree it works in
			}
			if err := use(by.ByName.Input, 0); err != nil {
				return err
			}
		}
	}
	if a.GetAction() == nil {
		return errs.New(errs.NotImplemented, "action %d is of a kind that is not known", i)
	}
	return nil
}

func ownerOf(a *pb.FileAction) *pb.ChownOpt {
	switch a := a.GetAction().(type) {
	case *pb.FileAction_Copy:
		return a.Copy.GetOwner()
	case *pb.FileAction_Mkdir:
		return a.Mkdir.GetOwner()
	case *pb.FileAction_Mkfile:
		return a.Mkfile.GetOwner()
	case *pb.FileAction_Symlink:
		return a.Symlink.GetOwner()
	}
	return nil
}

// Traits: a copy works the disk, as RUN does; the others are done at once.
func (f *fileOp) Traits() build.Traits {
	return build.Traits{Heavy: slices.ContainsFunc(f.actions, func(a *pb.FileAction) bool { return a.GetCopy() != nil })}
}

// selection is what a copy reads of its source.
func selection(c *pb.FileActionCopy) pick.Selection {
	return pick.Selection{
		Path: c.Src, Wildcard: c.AllowWildcard, Follow: c.FollowSymlink, Contents: c.DirCopyContents,
		Include: c.IncludePatterns, Exclude: c.ExcludePatterns, Required: c.RequiredPaths,
	}
}

// Key is made of the actions and of what they stand on: chains of the inputs that are gone on with, and the checksums of what is copied. Where in its source a thing lay that is
// copied by its name does not count.
func (f *fileOp) Key(ctx context.Context, env build.Env, in []build.Output) (digest.Digest, error) {
	if len(in) != f.inputs {
		return "", errs.New(errs.Invalid, "%s: %d inputs, not %d", f.v.Name, len(in), f.inputs)
	}
	in = slices.Clone(in) // an input that is brought may be another one then
	h := digest.SHA256.Digester()
	fmt.Fprintf(h.Hash(), "corten file op 1\ninputs %d\n", f.inputs)
	whole := map[int]bool{} // inputs that count as they are
	for i, a := range f.actions {
		def := proto.Clone(a).(*pb.FileAction)
		if a.Input >= 0 && int(a.Input) < f.inputs {
			whole[int(a.Input)] = true
		}
		if c := def.GetCopy(); c != nil && int(a.SecondaryInput) < f.inputs && a.SecondaryInput >= 0 {
			sum, err := f.sum(ctx, env, in, int(a.SecondaryInput), selection(c))
			if err != nil {
				return "", err
			}
			if in[a.SecondaryInput].Files != nil {
				f.sources.put(i, sum)
			}
			fmt.Fprintf(h.Hash(), "source %d %s\n", i, sum)
			if !pick.HasWildcards(c.Src) {
				c.Src = path.Base(path.Join("/", c.Src)) + map[bool]string{true: "/."}[strings.HasSuffix(c.Src, "/.")]
				c.RequiredPaths = nil
			}
		}
		for _, need := range f.names(a) {
			sum, err := f.sum(ctx, env, in, need.input, pick.Selection{Path: need.file + "*", Wildcard: true, Follow: true})
			if err != nil {
				return "", err
			}
			fmt.Fprintf(h.Hash(), "names %d %s\n", i, sum)
		}
		data, err := proto.MarshalOptions{Deterministic: true}.Marshal(def)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(h.Hash(), "action %d %d ", i, len(data))
		h.Hash().Write(data)
	}
	for i := range in {
		if !whole[i] {
			continue
		}
		id := string(in[i].Chain)
		if in[i].Files != nil {
			sum, err := f.sum(ctx, env, in, i, everything)
			if err != nil {
				return "", err
			}
			f.bases.put(i, sum)
			id = "files " + string(sum)
		}
		fmt.Fprintf(h.Hash(), "\ninput %d %s\n", i, id)
	}
	return h.Digest(), nil
}

// everything of a tree, its root's own mode and owner too.
var everything = pick.Selection{Path: "/"}

// sum is the checksum of what is chosen of an input, which is brought here when it must be.
func (f *fileOp) sum(ctx context.Context, env build.Env, in []build.Output, i int, sel pick.Selection) (digest.Digest, error) {
	if in[i].Files == nil {
		if sum, ok := f.o.sums.Cached(in[i].Chain, sel); ok {
			return sum, nil
		}
		if env.Bring != nil {
			out, err := env.Bring(ctx, i)
			if err != nil {
				return "", err
			}
			in[i] = out
		}
	}
	return f.o.sums.Of(ctx, in[i], sel)
}

// named is a file of an input in which the name of an owner is looked up.
type named struct {
	input int
	file  string
}

// names lists the files for an action's owner, in inputs that do not count as a whole anyway.
func (f *fileOp) names(a *pb.FileAction) (all []named) {
	owner := ownerOf(a)
	for file, u := range map[string]*pb.UserOpt{passwdFile: owner.GetUser(), groupFile: owner.GetGroup()} {
		if by, ok := u.GetUser().(*pb.UserOpt_ByName); ok && by.ByName.Input != a.Input && int(by.ByName.Input) < f.inputs {
			all = append(all, named{int(by.ByName.Input), file})
		}
	}
	if len(all) == 2 && all[0].file != passwdFile {
		all[0], all[1] = all[1], all[0]
	}
	return all
}

// value is a tree that is an input or was made by an action.
type value struct {
	out  build.Output
	work *work // of an action that the next one goes on with
}

// run is one Run.
type run struct {
	f        *fileOp
	env      build.Env
	values   []*value
	volatile bool
}

// Run does the actions.
func (f *fileOp) Run(ctx context.Context, env build.Env, in []build.Output) (made build.Made, err error) {
	r := &run{f: f, env: env, values: make([]*value, f.inputs+len(f.actions))}
	for i := range in {
		r.values[i] = &value{out: in[i]}
	}
	defer func() {
		for _, v := range r.values {
			if v != nil && v.work != nil {
				v.work.drop(ctx)
			}
		}
	}()
	for i := range f.actions {
		if f.uses[f.inputs+i] == 0 {
			continue // nobody wants it
		}
		if err := r.action(ctx, i); err != nil {
			return build.Made{}, err
		}
	}
	for _, v := range f.outputs {
		made.Outputs = append(made.Outputs, r.values[v].out)
	}
	made.Volatile = r.volatile
	return made, nil
}

// action does one action: on the tree that the one before left, or on a new one.
func (r *run) action(ctx context.Context, i int) (err error) {
	f, a := r.f, r.f.actions[i]
	var w *work
	if a.Input >= 0 && r.values[a.Input].work != nil {
		w = r.values[a.Input].work
		r.values[a.Input].work = nil
	} else {
		var base snapshot.ChainID
		if a.Input >= 0 {
			if base, err = r.chain(ctx, int(a.Input)); err != nil {
				return err
			}
		}
		if w, err = f.o.begin(ctx, base); err != nil {
			return err
		}
	}
	v := &value{work: w}
	r.values[f.inputs+i] = v
	if err := r.do(ctx, i, a, w); err != nil {
		return err
	}
	at := f.inputs + i
	if f.uses[at] == 1 && f.direct[at] == 1 {
		return nil // the next action goes on with it
	}
	chain, err := w.finish(ctx)
	v.work = nil
	v.out = build.Output{Chain: chain}
	return err
}

// chain gives a value's layers.
func (r *run) chain(ctx context.Context, i int) (snapshot.ChainID, error) {
	v := r.values[i]
	if v.out.Files == nil {
		return v.out.Chain, nil
	}
	out, volatile, err := r.f.o.tree(ctx, v.out.Files, everything, r.f.bases.get(i))
	if err != nil {
		return "", err
	}
	r.volatile = r.volatile || volatile
	return out.Chain, nil
}

func (r *run) do(ctx context.Context, i int, a *pb.FileAction, w *work) error {
	own, err := r.owner(ctx, a, w)
	if err != nil {
		return err
	}
	switch a := a.GetAction().(type) {
	case *pb.FileAction_Mkdir:
		return w.mkdir(a.Mkdir, own)
	case *pb.FileAction_Mkfile:
		return w.mkfile(a.Mkfile, own)
	case *pb.FileAction_Symlink:
		return w.symlink(a.Symlink, own)
	case *pb.FileAction_Rm:
		return w.rm(a.Rm)
	case *pb.FileAction_Copy:
		return r.copy(ctx, i, a.Copy, w, own)
	}
	return errs.New(errs.NotImplemented, "action %T is not known", a.GetAction())
}

// copy does a copy, and looks whether what it took from a directory in place is what the key says.
func (r *run) copy(ctx context.Context, i int, c *pb.FileActionCopy, w *work, own *owner) error {
	secondary := r.f.actions[i].SecondaryInput
	src := source{}
	var want digest.Digest
	if secondary >= 0 {
		v := r.values[secondary]
		if v.out.Files != nil {
			var err error
			if want = r.f.sources.get(i); want == "" {
				if want, err = r.f.o.sums.Files(ctx, v.out.Files, selection(c)); err != nil {
					return err
				}
			}
		}
		src = source{chain: v.out.Chain, files: v.out.Files}
	}
	tree, done, err := r.f.o.openSource(ctx, src)
	if err != nil {
		return err
	}
	defer done()
	cp, err := newCopier(w, c, own, src)
	if err != nil {
		return err
	}
	got, err := cp.all(ctx, tree, selection(c))
	if err != nil {
		return err
	}
	if want != "" && got != want {
		r.volatile = true
	}
	return nil
}

// source is where a copy comes from; neither is the empty tree.
type source struct {
	chain snapshot.ChainID
	files *build.Files
}

// openSource opens a source to pick from.
func (o *Ops) openSource(ctx context.Context, src source) (*pick.Tree, func(), error) {
	var root *os.File
	var done func()
	view := pick.View{}
	if src.files != nil {
		f, err := checksum.Open(src.files)
		if err != nil {
			return nil, nil, err
		}
		root, done = f, func() { f.Close() }
		view = pick.View{Include: src.files.Include, Exclude: src.files.Exclude, Follow: src.files.Follow}
	} else {
		m, err := o.trees.View(ctx, src.chain)
		if err != nil {
			return nil, nil, err
		}
		root, done = m.Root, func() { m.Close() }
	}
	tree, err := pick.New(root, view)
	if err != nil {
		done()
		return nil, nil, err
	}
	return tree, done, nil
}

// when gives the time that an action asks for; nil is now, or that of what is copied.
func when(stamp int64) *time.Time {
	if stamp == -1 {
		return nil
	}
	t := time.Unix(0, stamp)
	return &t
}
