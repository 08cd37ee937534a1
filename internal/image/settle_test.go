package image_test

import (
	"testing"
	"time"
)

// settle waits until the keeper has looked at everything.
func (h house) settle(t testing.TB) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); h.Remade().Waiting > 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not settled: %+v", h.Remade())
		}
	}
}
