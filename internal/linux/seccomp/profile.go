package seccomp

import (
	"fmt"
	"runtime"

	"corten.dev/corten/internal/errs"
	profiles "github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// DefaultProfile is Docker's default profile for a process with these capabilities ("CAP_…", the bounding set). arch is a Go architecture, "" for this machine's.
// The profile depends on the kernel that runs as well.
func DefaultProfile(caps []string, arch string) (*specs.LinuxSeccomp, error) {
	if arch != "" && arch != runtime.GOARCH {
		return nil, errs.New(errs.NotImplemented, "seccomp: the default profile of %s can be made on such a machine only", arch)
	}
	p, err := profiles.GetDefaultProfile(withCaps(caps))
	if err != nil {
		return nil, fmt.Errorf("seccomp: default profile: %w", err)
	}
	return p, nil
}

// LoadProfile reads a profile in Docker's form (conditions on capabilities, architectures and kernels included) for a process with these capabilities.
func LoadProfile(body []byte, caps []string) (*specs.LinuxSeccomp, error) {
	p, err := profiles.LoadProfile(string(body), withCaps(caps))
	if err != nil {
		return nil, errs.New(errs.Invalid, "seccomp profile: %w", err)
	}
	return p, nil
}

func withCaps(caps []string) *specs.Spec {
	return &specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: caps}}}
}
