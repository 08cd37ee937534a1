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
	mu     sync.Mutex // guards what is below
	made   map[*specs.LinuxSeccomp]*seccomp.Filter
	packed map[*seccomp.Filter][]byte
	shared map[string][]byte // by their content
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

// pack is packFilter, remembered: a thousand containers have one filter.
func (f *filters) pack(filter *seccomp.Filter) []byte {
	if filter == nil {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if b, ok := f.packed[filter]; ok {
		return b
	}
	b := f.shareLocked(packFilter(filter))
	if f.packed == nil || len(f.packed) >= keptFilters {
		f.packed = map[*seccomp.Filter][]byte{}
	}
	f.packed[filter] = b
	return b
}

// share is the one copy of a packed filter that was read from a record.
func (f *filters) share(b []byte) []byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.shareLocked(b)
}

func (f *filters) shareLocked(b []byte) []byte {
	if len(b) == 0 {
		return nil
	}
	if kept, ok := f.shared[string(b)]; ok {
		return kept
	}
	if f.shared == nil || len(f.shared) >= keptFilters {
		f.shared = map[string][]byte{}
	}
	f.shared[string(b)] = b
	return b
}
