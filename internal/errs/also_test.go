package errs_test

import (
	"errors"
	"testing"

	"corten.dev/corten/internal/errs"
)

func TestAlso(t *testing.T) {
	first, second := errs.New(errs.NotFound, "first"), errors.New("second")
	if errs.Also(nil, nil, nil) != nil {
		t.Error("nothing went wrong")
	}
	if err := errs.Also(nil, nil, second); err != second {
		t.Error(err)
	}
	err := errs.Also(first, nil, second)
	if err.Error() != "first; second" || !errors.Is(err, errs.NotFound) || !errors.Is(err, second) {
		t.Error(err)
	}
}
