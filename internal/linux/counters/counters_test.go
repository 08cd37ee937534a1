package counters

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func descriptors(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip("no procfs")
	}
	return len(list)
}

func TestKept(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "usage")
	write := func(s string) {
		if err := os.WriteFile(path, []byte(s), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("1\n")
	before := descriptors(t)
	budget := NewBudget(1)
	a, b := New(path, budget), New(path, budget)
	buf := make([]byte, 64<<10)
	for _, want := range []string{"1\n", "22\n", strings.Repeat("x", 10000)} {
		write(want)
		for _, k := range []*Kept{a, b} {
			if n, err := k.Read(buf); err != nil || string(buf[:n]) != want {
				t.Errorf("%d bytes, %v", n, err)
			}
		}
		if budget.Used() != 1 || descriptors(t) != before+1 {
			t.Errorf("%d kept, %d descriptors more", budget.Used(), descriptors(t)-before)
		}
	}
	a.Close()
	b.Close()
	if budget.Used() != 0 || descriptors(t) != before {
		t.Errorf("%d kept, %d descriptors more", budget.Used(), descriptors(t)-before)
	}
}

func TestAbsent(t *testing.T) {
	path := filepath.Join(t.TempDir(), "later")
	k := New(path, NewBudget(1))
	for range 2 {
		if _, err := k.Read(make([]byte, 10)); !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
		if err := os.WriteFile(path, nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func ExampleKept() {
	k := New("/proc/self/comm", NewBudget(10))
	defer k.Close()
	buf := make([]byte, 100)
	n, err := k.Read(buf)
	fmt.Println(n > 0, err)
	// Output: true <nil>
}
