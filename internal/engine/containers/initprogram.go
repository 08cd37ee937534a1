package containers

import (
	"embed"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"corten.dev/corten/internal/errs"
)

// The init program is carried inside the engine; `make build` puts it there.
//
//go:embed all:initbin
var initFiles embed.FS

// initProgram is the file that --init binds into containers, written once per engine.
type initProgram struct {
	dir  string
	once sync.Once
	path string
	err  error
}

func (i *initProgram) get() (string, error) {
	i.once.Do(func() {
		b, err := fs.ReadFile(initFiles, "initbin/corten-init")
		if errors.Is(err, fs.ErrNotExist) {
			i.err = errs.New(errs.Unavailable, "--init: this engine was built without its init program (use make build)")
			return
		}
		if i.err = err; err != nil {
			return
		}
		if i.err = os.MkdirAll(i.dir, 0o711); i.err != nil {
			return
		}
		// Written aside: containers of an earlier engine may be executing the old file.
		i.path = filepath.Join(i.dir, "corten-init")
		if i.err = os.WriteFile(i.path+".new", b, 0o555); i.err != nil {
			return
		}
		i.err = os.Rename(i.path+".new", i.path)
	})
	return i.path, i.err
}

// prepareInit sets the init program of a run, if it has one.
func (s *Service) prepareInit(r *run) error {
	on := s.Init
	if r.rec.Host.Init != nil {
		on = *r.rec.Host.Init
	}
	if !on || r.rec.Host.PidMode == "host" {
		return nil
	}
	var err error
	r.init, err = s.init.get()
	return err
}
