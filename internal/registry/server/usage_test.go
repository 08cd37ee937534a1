package server_test

import (
	"fmt"
	"testing"
)

// What a repository takes is each blob that it holds, once, also one that it mounted from another; a repository that is not there takes nothing.
func TestUsage(t *testing.T) {
	r, ts := newRegistry(t, nil)
	c := newClient(t, ts.URL)
	for i := range 3 {
		_, err := c.image("team/app", fmt.Sprint(i), []byte(`{"n":1}`), []byte("one layer"), []byte("another layer"))
		ok(t, err)
	}
	const want = int64(len(`{"n":1}`) + len("one layer") + len("another layer"))
	for repo, want := range map[string]int64{"team/app": want, "team": 0, "nobody/knows": 0} {
		if got, err := r.Usage(t.Context(), repo); err != nil || got != want {
			t.Errorf("usage of %s: %d, %v; want %d", repo, got, err, want)
		}
	}
}
