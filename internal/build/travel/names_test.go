package travel_test

import (
	"testing"

	"corten.dev/corten/internal/reference"
)

func parse(t testing.TB, name string) reference.Ref {
	t.Helper()
	r, err := reference.Parse(name)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func refs(all ...reference.Ref) []reference.Ref { return all }
