package task

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
)

func TestContain(t *testing.T) {
	var text bytes.Buffer
	log := slog.New(slog.NewTextHandler(&text, nil))
	work := func(bug bool) (err error) {
		defer Contain(log, "step 1", &err)
		if bug {
			panic("oh")
		}
		return nil
	}
	if err := work(false); err != nil || text.Len() > 0 {
		t.Error(err, text.String())
	}
	if err := work(true); err == nil || !strings.HasPrefix(err.Error(), "step 1: bug of the engine: ") || !strings.Contains(text.String(), "bug_test.go") {
		t.Error(err, text.String())
	}
}
