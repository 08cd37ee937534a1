package steps_test

import "testing"

// BenchmarkRunTrue is RUN true on a small tree, everything included: tree, mounts, namespaces, network, cgroups, process, layer.
func BenchmarkRunTrue(b *testing.B) {
	h := newHost(b)
	for b.Loop() {
		r := h.sh("")
		r.exec.Meta.Args = []string{"/bin/true"}
		h.do(r)
	}
}
