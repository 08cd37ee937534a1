package runtime

import (
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"corten.dev/corten/internal/linux/seccomp"
)

const keptFilters = 32

// filters keeps compiled seccomp profiles by the profile's address: an engine hands the same default profile in for nearly every container, and compiling it
// takes longer than any other part of a program. A kept profile cannot be collected, so its address names nothing else.
type filters struct {
	mu   sync.Mutex // guards made
	made map[*specs.LinuxSeccomp]*seccomp.Filter
}

// compile is compileSeccomp, remembered. A profile that was handed in once must not be changed.
func (f *filters) compile(s *specs.LinuxSeccomp) (*seccomp.Filter, error) {
	if s == nil {
		return nil, nil
	}
	f.mu.Lock()
	made := f.made[s]
	f.mu.Unlock()
	if made != nil {
		return made, nil
	}
	made, err := compileSeccomp(s)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.made == nil || len(f.made) >= keptFilters {
		f.made = map[*specs.LinuxSeccomp]*seccomp.Filter{}
	}
	f.made[s] = made
	return made, nil
}
