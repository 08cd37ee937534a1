package containers

import (
	"testing"
)

type namedTrees struct {
	Trees
	name string
}

func (n namedTrees) Name() string { return n.name }

// The words are those of Docker's overlay2 driver.
func TestStorageSize(t *testing.T) {
	for _, c := range []struct {
		driver string
		opts   map[string]string
		want   int64
		err    string
	}{
		{"overlay", nil, 5, ""},
		{"overlay", map[string]string{"size": "0"}, 5, ""},
		{"overlay", map[string]string{"SIZE": "1k"}, 1024, ""},
		{"overlay", map[string]string{"size": "-1"}, 0, "invalid size: '-1'"},
		{"overlay", map[string]string{"size": ""}, 0, "invalid size: ''"},
		{"overlay", map[string]string{"dm.basesize": "1G"}, 0, "unknown option dm.basesize"},
		{"plain", map[string]string{"size": "1G"}, 0, "--storage-opt is supported only for the storage driver overlay, not for plain"},
	} {
		s := &Service{Options: Options{Trees: namedTrees{name: c.driver}, TreeSize: 5}}
		got, err := s.storageSize(c.opts)
		if text := errText(err); got != c.want && err == nil || text != c.err {
			t.Errorf("%s %v: %d, %q", c.driver, c.opts, got, text)
		}
	}
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
