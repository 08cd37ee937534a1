package pick

import (
	"os"
	"sort"

	"golang.org/x/sys/unix"
)

// Names lists a directory, sorted, by a descriptor of its own.
func Names(dir int) ([]string, error) {
	fd, err := unix.Openat(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "directory")
	defer f.Close()
	names, err := f.Readdirnames(-1)
	sort.Strings(names)
	return names, err
}

// Root is the tree's root; it stays who gave it's.
func (t *Tree) Root() int { return t.root }
