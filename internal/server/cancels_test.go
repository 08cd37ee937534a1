package server

import (
	"errors"
	"testing"

	"corten.dev/corten/internal/errs"
)

// A second build of the same id is refused and leaves the first one's place alone: /build/cancel found nothing to cancel any more once the second had failed.
func TestCancelsOfOneID(t *testing.T) {
	var c cancels
	ended := false
	remove, err := c.add("b", func() { ended = true })
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.add("b", func() {}); !errors.Is(err, errs.Conflict) {
		t.Error(err)
	}
	if cancel := c.all["b"]; cancel == nil {
		t.Error("the first build cannot be cancelled any more")
	} else if cancel(); !ended {
		t.Error("not the first build's")
	}
	remove()
	if _, err := c.add("b", func() {}); err != nil {
		t.Error(err)
	}
}
