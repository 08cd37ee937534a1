package export

import (
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"corten.dev/corten/internal/reference"
)

// The names are those that BuildKit's own function gave: scanners compare them.
func TestImageURL(t *testing.T) {
	arm := &ocispec.Platform{OS: "linux", Architecture: "arm", Variant: "v7"}
	for name, want := range map[string]string{
		"alpine":                    "pkg:docker/alpine@latest",
		"alpine:3.17":               "pkg:docker/alpine@3.17",
		"127.0.0.1:5000/team/app:1": "pkg:docker/127.0.0.1%3A5000/team/app@1",
		"example.com/a/b:x_y.z-1":   "pkg:docker/example.com/a/b@x_y.z-1",
	} {
		r, err := reference.Parse(name)
		if err != nil {
			t.Fatal(err)
		}
		if got := imageURL(r, nil); got != want {
			t.Errorf("%s, want %s", got, want)
		}
		if got := imageURL(r, arm); got != want+"?platform=linux%2Farm%2Fv7" {
			t.Errorf("%s", got)
		}
	}
}
