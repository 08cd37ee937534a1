package containers

import (
	"strings"

	"github.com/docker/go-units"

	"corten.dev/corten/internal/container"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/snapshot"
)

// storageSize reads the storage options of a container: how many bytes its own files may take. Without one, or with a size of 0, it is the engine's default.
func (s *Service) storageSize(opts map[string]string) (int64, error) {
	size := int64(0)
	for name, value := range opts {
		if strings.ToLower(name) != "size" {
			return 0, errs.New(errs.Invalid, "unknown option %s", name)
		}
		var err error
		if size, err = units.RAMInBytes(value); err != nil {
			return 0, errs.As(errs.Invalid, err)
		}
	}
	if size == 0 {
		return s.TreeSize, nil
	}
	if s.Trees.Name() != "overlay" {
		return 0, errs.New(errs.NotImplemented, "--storage-opt is supported only for the storage driver overlay, not for %s", s.Trees.Name())
	}
	return size, nil
}

// treeOptions say how the tree of a container is made.
func (s *Service) treeOptions(rec *container.Record) (snapshot.Options, error) {
	size, err := s.storageSize(rec.Host.StorageOpt)
	return snapshot.Options{Labels: map[string]string{labelOwner: rec.ID}, Durable: !rec.Host.AutoRemove, Size: size, Label: rec.MountLabel}, err
}
