package runtime

import (
	"os"

	"corten.dev/corten/internal/linux/launch"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Check is for fuzz targets, which cannot make a container of each spec that they think of. It tells whether a spec could be made into a program, without making anything: no cgroup, no mount, no process. What only the kernel can tell (whether a file exists,
// whether an option is known to a file system) is told by Create.
func Check(spec *specs.Spec) error {
	opts := &RunOptions{ID: "check", Spec: spec, Bundle: "/nonexistent", Launcher: LauncherFunc(direct)}
	if err := validate(opts); err != nil {
		return err
	}
	filter, err := compileSeccomp(opts.Spec.Linux.Seccomp)
	if err != nil {
		return err
	}
	p := newPlan(opts.Spec, opts)
	p.dry = true
	defer p.close()
	if err := p.create(filter, nil, nil); err != nil {
		return err
	}
	code, err := p.encode()
	if err != nil {
		return err
	}
	_, err = launch.Decode(code)
	return err
}

// nothing is a file that stands for one that a dry plan does not make.
func nothing() *os.File { return os.NewFile(^uintptr(0), "nothing") }
