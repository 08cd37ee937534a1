package main

import (
	"context"
	"errors"
	"os/user"
	"sync"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/image"
	"corten.dev/corten/internal/image/hello"
)

// withHello is the image store with the image that the engine carries inside itself: corten/hello is loaded when somebody asks for it and it is not there.
type withHello struct {
	*image.Images
	once sync.Mutex // one load at a time; held over the load on purpose, others want the same image
}

// Get finds an image, loading the built-in one on demand.
func (w *withHello) Get(ctx context.Context, ref string) (image.Image, error) {
	img, err := w.Images.Get(ctx, ref)
	if !errors.Is(err, errs.NotFound) || ref != "corten/hello" && ref != "corten/hello:latest" {
		return img, err
	}
	w.once.Lock()
	defer w.once.Unlock()
	if img, err := w.Images.Get(ctx, ref); err == nil {
		return img, nil
	}
	archive, err := hello.Archive()
	if err != nil {
		return image.Image{}, err
	}
	if _, err := w.Load(ctx, archive, nil); err != nil {
		return image.Image{}, err
	}
	return w.Images.Get(ctx, ref)
}

func groupExists(name string) bool {
	_, err := user.LookupGroup(name)
	return err == nil
}
