package ship

import (
	"io"
	"testing"
)

func TestLayersCompressToHalf(t *testing.T) {
	d, diff, unpacked, err := writeLayer(io.Discard, 0, 16<<20)
	if err != nil {
		t.Fatal(err)
	}
	again, same, _, err := writeLayer(io.Discard, 0, 16<<20)
	if err != nil {
		t.Fatal(err)
	}
	if d.Digest != again.Digest || diff != same {
		t.Errorf("the same layer came out as %s and %s", d.Digest, again.Digest)
	}
	if ratio := float64(d.Size) / float64(unpacked); ratio < 0.45 || ratio > 0.55 {
		t.Errorf("%d bytes became %d (%.2f): the budget speaks of half", unpacked, d.Size, ratio)
	}
}
