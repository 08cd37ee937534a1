package foreign

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/linux/launch"
	"corten.dev/corten/internal/runtime"
	"corten.dev/corten/internal/task"
)

// specVersion is what the configuration is written for: nothing in it is newer, and runtimes of distributions refuse versions that came after them.
const specVersion = "1.0.2"

// Create runs a container and returns when its program was executed. Of the options count ID, Spec, Root, Sources, NetNS and Launcher.
func (r *Runtimes) Create(ctx context.Context, name string, opts runtime.RunOptions) (_ *Container, err error) {
	cmd, ok := r.commands[name]
	if !ok {
		return nil, errs.New(errs.Invalid, "unknown or invalid runtime name: %s", name)
	}
	if opts.Root == nil {
		return nil, errs.New(errs.Invalid, "container %s has no file tree", opts.ID)
	}
	ctr := &Container{r: r, dir: r.dir(opts.ID), rec: record{ID: opts.ID, Command: cmd, Systemd: r.opts.Systemd, Cgroup: opts.Spec.Linux.CgroupsPath}}
	var undo task.Undo
	defer undo.OnError(ctx, &err)
	if err := os.MkdirAll(ctr.dir, 0o700); err != nil {
		return nil, err
	}
	undo.Push(func(context.Context) error { return ctr.removeFolder() })
	if err := ctr.save(); err != nil {
		return nil, err
	}
	b := &bundle{ctr: ctr, opts: opts, dir: filepath.Join(ctr.dir, "bundle")}
	if err := b.write(ctx); err != nil {
		return nil, err
	}
	undo.Push(func(ctx context.Context) error {
		_, err := ctr.call(ctx, nil, "delete", "--force", opts.ID)
		return gone(err)
	})
	pid, pidfd, err := ctr.launch(ctx, job{
		launcher: opts.Launcher, terminal: opts.Spec.Process.Terminal, name: "create", prepare: b.attach, files: b.files,
		verb: []string{"create", "--bundle", b.dir}, id: opts.ID,
	})
	if err != nil {
		return nil, err
	}
	if err := pidfd.Close(); err != nil {
		return nil, err
	}
	ctr.rec.PID = pid
	if ctr.rec.Start, err = runtime.StartTime(pid); err != nil {
		return nil, fmt.Errorf("its process ended before it was started: %w", err)
	}
	if err := ctr.save(); err != nil {
		return nil, err
	}
	if _, err := ctr.call(ctx, nil, "start", opts.ID); err != nil {
		return nil, err
	}
	ctr.rec.Started = true
	return ctr, ctr.save()
}

// removeFolder takes all of a container away in one go: a runtime's state that outlived the record would be in the way of the next container of that id.
func (ctr *Container) removeFolder() error {
	aside := filepath.Join(ctr.r.opts.Root, "."+ctr.rec.ID)
	if err := os.RemoveAll(aside); err != nil {
		return err
	}
	if err := os.Rename(ctr.dir, aside); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return os.RemoveAll(aside)
}

// bundle is the folder that the runtime gets.
type bundle struct {
	ctr   *Container
	opts  runtime.RunOptions
	dir   string
	files []*os.File // for the program's slots, in order
	at    []string   // where they are attached
}

// write makes the folder: places for the mounts that have no path on this host, and the configuration that names them.
func (b *bundle) write(ctx context.Context) error {
	if err := os.MkdirAll(filepath.Join(b.dir, "rootfs"), 0o711); err != nil {
		return err
	}
	spec := *b.opts.Spec
	linux := *spec.Linux
	root := specs.Root{}
	if spec.Root != nil {
		root = *spec.Root
	}
	root.Path = filepath.Join(b.dir, "rootfs")
	spec.Version, spec.Root, spec.Linux, spec.Mounts = specVersion, &root, &linux, slices.Clone(spec.Mounts)
	b.files, b.at = []*os.File{b.opts.Root}, []string{root.Path}
	for i := range spec.Mounts {
		if err := b.mount(ctx, &spec.Mounts[i]); err != nil {
			return err
		}
	}
	if b.opts.NetNS != nil {
		linux.Namespaces = slices.Clone(linux.Namespaces)
		i := slices.IndexFunc(linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.NetworkNamespace })
		if i < 0 {
			linux.Namespaces = append(linux.Namespaces, specs.LinuxNamespace{Type: specs.NetworkNamespace})
			i = len(linux.Namespaces) - 1
		}
		linux.Namespaces[i].Path = ours(b.opts.NetNS)
	}
	body, err := json.Marshal(&spec)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(b.dir, "config.json"), body, 0o600)
}

// ours is the path by which another process finds a descriptor of this one.
func ours(f *os.File) string {
	return "/proc/" + strconv.Itoa(os.Getpid()) + "/fd/" + strconv.Itoa(int(f.Fd()))
}

// mount gives a detached mount a place, and refuses what this runtime would leave out without a word.
func (b *bundle) mount(ctx context.Context, m *specs.Mount) error {
	name := b.ctr.rec.Command.Name
	if len(m.UIDMappings)+len(m.GIDMappings) > 0 && !b.ctr.can(ctx, func(f *feature) bool { return f.Linux.MountExtensions.IDMap.Enabled }) {
		return errs.New(errs.NotImplemented, "mount on %s: the runtime %s does not say that it maps ids of mounts", m.Destination, name)
	}
	for _, o := range m.Options {
		if recursive(o) && !b.ctr.can(ctx, func(f *feature) bool { return slices.Contains(f.MountOptions, o) }) {
			return errs.New(errs.NotImplemented, "mount on %s: the runtime %s does not say that it knows the option %s", m.Destination, name, o)
		}
	}
	f := b.opts.Sources[m.Source]
	if f == nil {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return err
	}
	at := filepath.Join(b.dir, "mounts", strconv.Itoa(len(b.files)))
	dir := st.Mode&unix.S_IFMT == unix.S_IFDIR
	if !dir {
		at = filepath.Join(filepath.Dir(at), "file-"+filepath.Base(at))
	}
	if err := os.MkdirAll(filepath.Dir(at), 0o711); err != nil {
		return err
	}
	if dir {
		if err := os.MkdirAll(at, 0o711); err != nil {
			return err
		}
	} else if err := os.WriteFile(at, nil, 0o600); err != nil {
		return err
	}
	m.Source = at
	b.files, b.at = append(b.files, f), append(b.at, at)
	return nil
}

// recursive tells the options of whole trees, which came after the others (rro, rnosuid …).
func recursive(o string) bool {
	return slices.Contains([]string{"rro", "rrw", "rsuid", "rnosuid", "rdev", "rnodev", "rexec", "rnoexec", "ratime", "rnoatime", "rdiratime", "rnodiratime", "rrelatime", "rnorelatime", "rstrictatime", "rnostrictatime", "rsymfollow", "rnosymfollow"}, o)
}

// attach has the create command see the file tree and the other mounts, in a mount namespace of its own.
func (b *bundle) attach(p *launch.Builder, slots []launch.Arg) {
	null := launch.Imm(0)
	trees := slices.Clone(slots)
	if !b.opts.RootDetached { // a clone of it, made while the process is still in the namespace that has it
		p.Note("clone the file tree")
		trees[0] = p.NewReg()
		p.Sys(unix.SYS_OPEN_TREE, slots[0], p.Str(""), launch.Imm(unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH|unix.AT_RECURSIVE)).To(trees[0])
	}
	p.Note("make a mount namespace")
	p.Sys(unix.SYS_UNSHARE, launch.Imm(unix.CLONE_NEWNS))
	p.Sys(unix.SYS_MOUNT, null, p.Str("/"), null, launch.Imm(unix.MS_REC|unix.MS_SLAVE), null)
	for i, at := range b.at {
		p.Note("attach a mount at " + at)
		p.Sys(unix.SYS_MOVE_MOUNT, trees[i], p.Str(""), launch.AtCwd(), p.Str(at), launch.Imm(unix.MOVE_MOUNT_F_EMPTY_PATH))
	}
}
