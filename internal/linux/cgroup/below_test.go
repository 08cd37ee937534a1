package cgroup

import (
	"os"
	"strings"
	"testing"
)

// A place below the container's stays below it, whatever its path, and has to be there; what a controller's place does not name keeps the container's own.
func TestBelow(t *testing.T) {
	root := t.TempDir()
	a, b := &hierarchy{root: root + "/a", controllers: []string{"cpu", "cpuacct"}}, &hierarchy{root: root + "/b", controllers: []string{"pids"}}
	m := &Manager{path: "/c", v1: []dir{{hier: a}, {hier: b}}, v2: root + "/u/c"}
	for _, d := range []string{"/a/c/s", "/b/c/s", "/u/c/s", "/b/c/p"} {
		if err := os.MkdirAll(root+d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct{ places, want string }{
		{"s", "/a/c/s /b/c/s /u/c/s"}, {"/../../s/", "/a/c/s /b/c/s /u/c/s"}, {"/", "/a/c /b/c /u/c"},
		{"pids:p", "/a/c /b/c/p /u/c"}, {"cpuacct,pids:s", "/a/c/s /b/c/s /u/c"}, {"cpu:s pids:p", "/a/c/s /b/c/p /u/c"},
		{"p", "no such file"}, {"memory:s", "no v1 hierarchy of memory"}, {"pids,:s", "no v1 hierarchy of "},
	} {
		got := ""
		if below, err := m.Below(strings.Fields(c.places)); err != nil {
			got = err.Error()
		} else {
			got = strings.ReplaceAll(strings.Join([]string{below.at(below.v1[0]), below.at(below.v1[1]), below.v2}, " "), root, "")
		}
		if !strings.Contains(got, c.want) || !strings.HasPrefix(c.want, "no ") && got != c.want {
			t.Errorf("%s: %s, want %s", c.places, got, c.want)
		}
	}
	if m.v1[0].own != "" {
		t.Error("the container's own place was edited")
	}
}
