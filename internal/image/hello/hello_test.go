package hello

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"corten.dev/corten/internal/errs"
)

func TestArchiveIsStable(t *testing.T) {
	var all [2][]byte
	for i := range all {
		r, err := archive([]byte("program"))
		if err != nil {
			t.Fatal(err)
		}
		if all[i], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
	if len(all[0]) == 0 || !bytes.Equal(all[0], all[1]) {
		t.Error("two archives differ")
	}
	if r, err := Archive(); (r == nil) != (err != nil) || err != nil && !errors.Is(err, errs.NotImplemented) {
		t.Error(r, err)
	}
}
