package task

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
)

func TestSideBySide(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	odd := errors.New("odd")
	var told [3]error
	err := SideBySide(t.Context(), log, "test", 3, func(ctx context.Context, i int) error {
		if i == 1 {
			return odd
		}
		<-ctx.Done() // the others end with the first error, and know of it
		told[i] = context.Cause(ctx)
		return told[i]
	})
	if !errors.Is(err, odd) || !errors.Is(told[0], odd) || !errors.Is(told[2], odd) {
		t.Error(err, told)
	}
	if err := SideBySide(t.Context(), log, "test", 0, nil); err != nil {
		t.Error(err)
	}
	// A bug in one of them is its error, and ends the others.
	err = SideBySide(t.Context(), log, "test", 2, func(ctx context.Context, i int) error {
		if i == 0 {
			panic("oh")
		}
		<-ctx.Done()
		return nil
	})
	if err == nil || !strings.HasPrefix(err.Error(), "test: bug of the engine: ") {
		t.Error(err)
	}
}
