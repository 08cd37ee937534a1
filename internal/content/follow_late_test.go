package content

import (
	"context"
	"io"
	"strings"
	"testing"
)

// A pull's small layer was committed before the unpacking began to follow it, and the pull failed with "the download was given up".
func TestFollowAfterCommit(t *testing.T) {
	s, err := New(Options{Root: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	in, err := s.Begin("late")
	if err == nil {
		_, err = io.Copy(in, strings.NewReader("all of it"))
	}
	if err == nil {
		_, err = in.Commit("", -1)
	}
	if err != nil {
		t.Fatal(err)
	}
	r := in.Follow(context.Background())
	defer r.Close()
	if got, err := io.ReadAll(r); err != nil || string(got) != "all of it" {
		t.Errorf("got %q, %v", got, err)
	}
}
