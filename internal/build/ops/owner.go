package ops

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"path"
	"strconv"
	"strings"

	"github.com/moby/buildkit/solver/pb"
	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/build/checksum/pick"
	"corten.dev/corten/internal/errs"
)

const (
	passwdFile = "/etc/passwd"
	groupFile  = "/etc/group"
	// maxNames bounds what is read of them.
	maxNames = 10 << 20
)

// owner is who gets what an action makes.
type owner struct{ uid, gid int }

// owner finds the numbers of an action's owner; nil when it asks for none. A name that the tree does not know is root, with a warning, as BuildKit has it without.
func (r *run) owner(ctx context.Context, a *pb.FileAction, w *work) (*owner, error) {
	opt := ownerOf(a)
	if opt == nil {
		return nil, nil
	}
	own := &owner{}
	switch u := opt.GetUser().GetUser().(type) {
	case *pb.UserOpt_ByID:
		own.uid, own.gid = int(u.ByID), int(u.ByID)
	case *pb.UserOpt_ByName:
		ids, err := r.lookup(ctx, a, w, passwdFile, u.ByName)
		if err != nil {
			return nil, err
		}
		if len(ids) > 1 {
			own.uid, own.gid = ids[0], ids[1]
		}
	}
	switch u := opt.GetGroup().GetUser().(type) {
	case *pb.UserOpt_ByID:
		own.gid = int(u.ByID)
	case *pb.UserOpt_ByName:
		ids, err := r.lookup(ctx, a, w, groupFile, u.ByName)
		if err != nil {
			return nil, err
		}
		if len(ids) > 0 {
			own.gid = ids[0]
		}
	}
	return own, nil
}

// lookup finds a name in a file of the tree that the action works in, or of another one.
func (r *run) lookup(ctx context.Context, a *pb.FileAction, w *work, file string, name *pb.NamedUserOpt) ([]int, error) {
	root := w.root
	if name.Input != a.Input {
		v := r.values[name.Input]
		tree, done, err := r.f.o.openSource(ctx, source{chain: v.out.Chain, files: v.out.Files})
		if err != nil {
			return nil, err
		}
		defer done()
		root = tree.Root()
	}
	ids, err := lookupName(root, file, name.Name)
	if err != nil {
		return nil, err
	}
	if ids == nil && r.env.Progress != nil {
		text := "owner " + strconv.Quote(name.Name) + " is not in " + file + " of the tree: root is taken"
		warning := build.Warning{Level: 1, Short: []byte(text), Detail: [][]byte{[]byte("give a number instead (--chown=1000:1000), or make the user in an earlier step; with --link names are not known")}}
		if r.env.Vertex != nil {
			warning.Vertex = r.env.Vertex.Digest
		}
		r.env.Progress.Warn(warning)
	}
	return ids, nil
}

// lookupName finds the numbers behind a name in a file like /etc/passwd (name:x:uid:gid:…) or /etc/group (name:x:gid:…); nil when it is not there.
func lookupName(root int, file, name string) ([]int, error) {
	real, err := pick.Resolve(root, file, true)
	var fd int
	if err == nil {
		fd, err = pick.OpenReal(root, real, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY)
	}
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: file, Err: err}
	}
	f := os.NewFile(uintptr(fd), file)
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() || st.Size() > maxNames {
		return nil, errs.New(errs.Invalid, "%s of the tree is no file of at most %d bytes", path.Clean(file), maxNames)
	}
	return findName(io.LimitReader(f, maxNames), name)
}

// findName reads such a file.
func findName(r io.Reader, name string) ([]int, error) {
	br := bufio.NewReaderSize(r, 64<<10)
	for {
		line, err := br.ReadString('\n')
		if rest, ok := strings.CutPrefix(strings.TrimSpace(line), name+":"); ok {
			if ids := numbers(rest); ids != nil {
				return ids, nil
			}
		}
		if err == io.EOF {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
	}
}

// numbers reads the fields behind the password.
func numbers(rest string) (ids []int) {
	fields := strings.Split(rest, ":")
	for _, field := range fields[1:min(3, len(fields))] {
		n, err := strconv.ParseUint(field, 10, 31)
		if err != nil {
			break
		}
		ids = append(ids, int(n))
	}
	return ids
}
