package containers_test

import (
	"errors"
	"strings"
	"testing"

	"corten.dev/corten/internal/engine/containers"
	"corten.dev/corten/internal/errs"
)

// An image that was here for another platform, too, was not found: only what the name led to counted.
func TestCreateForAPlatform(t *testing.T) {
	svc, err := containers.New(newWorld().options(t))
	must(t, err)
	for want, id := range map[string]string{"": "sha256:1234", "linux": "sha256:1234", "linux/amd64": "sha256:1234", "linux/arm64": "sha256:arm", "arm64": "sha256:arm", "linux/s390x": "", "a/b/c/d": ""} {
		req := fakeRequest(t)
		req.Name, req.Platform = "", want
		made, err := svc.Create(bg, req)
		if id == "" {
			if !errors.Is(err, errs.NotFound) && !errors.Is(err, errs.Invalid) || errors.Is(err, errs.NotFound) && !strings.HasPrefix(err.Error(), "image with reference img was found but") {
				t.Errorf("%s: %v", want, err)
			}
			continue
		}
		must(t, err)
		ctr, err := svc.Inspect(bg, made.ID, false)
		must(t, err)
		if ctr.Image.String() != id {
			t.Errorf("%q: made of %s", want, ctr.Image)
		}
	}
	must(t, svc.Close())
}
