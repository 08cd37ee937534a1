package containers

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"

	"corten.dev/corten/internal/engine/hostspec"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/linux/mount"
	"corten.dev/corten/internal/linux/pidfd"
	"corten.dev/corten/internal/monitor"
	"corten.dev/corten/internal/snapshot"
)

// openTree gives a container's tree for a while, without what is mounted over it.
//
// While the container runs, its tree is mounted inside of it and nowhere else. Another mount of the same directories, which the store would make, takes the first one's work directory away
// (overlayfs: "accessing files from both mounts will result in undefined behavior"): from then on the container can change no file of its image, and finds directories "nonexistent". So the
// container's own mount is cloned.
func (s *Service) openTree(ctx context.Context, ctr *live) (*snapshot.Mounted, error) {
	ctr.mu.Lock()
	mon := ctr.mon
	ctr.mu.Unlock()
	if mon != nil && mon.PIDFD() != nil {
		root, err := ownMount(mon)
		if err == nil {
			return &snapshot.Mounted{Root: root, Detached: true, Close: sync.OnceValue(root.Close)}, nil
		}
		if !errors.Is(err, errs.Conflict) && !hostspec.Missing(err) && !errors.Is(err, syscall.ESRCH) { // those say that it has ended meanwhile
			return nil, fmt.Errorf("the running container's mount: %w", err)
		}
	}
	return s.Trees.Mount(ctx, ctr.record().TreeKey())
}

// ownMount clones the mount that is the root of a running container's mount namespace.
func ownMount(mon monitor.Process) (*os.File, error) {
	home, err := pidfd.Open(mon.PIDFD(), mon.PID(), "ns/mnt")
	if err != nil {
		return nil, err
	}
	defer home.Close()
	return mount.TreeIn(home, "/")
}
