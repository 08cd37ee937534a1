package main

import (
	"context"
	"errors"
	"os/user"
	"sync"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/image"
	"corten.dev/corten/internal/image/hello"
	"corten.dev/corten/internal/manifest"
)

// withHello is the image store with the image that the engine carries inside itself: corten/hello is loaded when somebody asks for it and it is not there.
type withHello struct {
	*image.Images
	once sync.Mutex // one load at a time; held over the load on purpose, others want the same image
}

// Get finds an image, loading the built-in one on demand.
func (w *withHello) Get(ctx context.Context, ref string) (image.Image, error) {
	return w.find(ctx, ref, func() (image.Image, error) { return w.Images.Get(ctx, ref) })
}

// GetFor finds an image of a platform, as builds do ("FROM corten/hello").
func (w *withHello) GetFor(ctx context.Context, ref string, p manifest.Platform) (image.Image, error) {
	return w.find(ctx, ref, func() (image.Image, error) { return w.Images.GetFor(ctx, ref, p) })
}

func (w *withHello) find(ctx context.Context, ref string, look func() (image.Image, error)) (image.Image, error) {
	img, err := look()
	if !errors.Is(err, errs.NotFound) || ref != "corten/hello" && ref != hello.Name {
		return img, err
	}
	w.once.Lock()
	defer w.once.Unlock()
	if _, err := w.Images.Get(ctx, hello.Name); err == nil {
		return look() // another one loaded it meanwhile, or it has no such platform
	}
	archive, err := hello.Archive()
	if err != nil {
		return image.Image{}, err
	}
	if _, err := w.Load(ctx, archive, nil); err != nil {
		return image.Image{}, err
	}
	return look()
}

func groupExists(name string) bool {
	_, err := user.LookupGroup(name)
	return err == nil
}
