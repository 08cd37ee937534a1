package image_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/snapshot"
)

// An archive without the layers that its reader has gives the same image there; a reader that does not have them is told so, and nothing is half made.
func TestSaveWithoutLayers(t *testing.T) {
	h := open(t, t.TempDir())
	loadHello(t, h)
	base, err := h.Get(ctx, "corten/hello")
	if err != nil {
		t.Fatal(err)
	}
	var whole, part bytes.Buffer
	if err := errors.Join(h.Save(ctx, []string{"corten/hello"}, nil, &whole), h.Save(ctx, []string{"corten/hello"}, []snapshot.ChainID{base.Chain}, &part)); err != nil {
		t.Fatal(err)
	}
	if part.Len() >= whole.Len()/2 {
		t.Errorf("the archive without the layer has %d bytes, the whole one %d", part.Len(), whole.Len())
	}
	if have, err := h.HasChain(ctx, base.Chain); err != nil || !have {
		t.Errorf("the chain is not here: %v", err)
	}
	if _, err := h.Load(ctx, bytes.NewReader(part.Bytes()), nil); err != nil {
		t.Errorf("load where the layer is: %v", err)
	}
	if again, err := h.Get(ctx, "corten/hello"); err != nil || again.ID != base.ID {
		t.Errorf("got %s, want %s: %v", again.ID, base.ID, err)
	}
	other := open(t, t.TempDir())
	_, err = other.Load(ctx, bytes.NewReader(part.Bytes()), nil)
	if !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "the layer is not here either: save the image whole") {
		t.Errorf("load where the layer is not: %v", err)
	}
	if list, err := other.List(ctx); err != nil || len(list) != 0 {
		t.Errorf("something was loaded: %v %v", list, err)
	}
}
