package joined_test

import (
	"fmt"
	"testing"

	"corten.dev/corten/internal/engine/builds"
)

const six = "FROM busybox\nRUN echo 1 > /1\nRUN echo 2 > /2\nCOPY file /file\nRUN echo 3 > /3\nWORKDIR /w\nRUN echo 4 > 4\n"

// A rebuild of six steps of which all is cached: the engine's part of the 25 ms.
func BenchmarkRebuild(b *testing.B) {
	h := newHost(b)
	ses := h.context(map[string]string{"Dockerfile": six, "file": "x"})
	if _, _, err := h.build(ses, "six:latest", nil); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, _, err := h.build(ses, "six:latest", nil); err != nil {
			b.Fatal(err)
		}
	}
}

// The same with nothing cached: 150 ms.
func BenchmarkCold(b *testing.B) {
	h := newHost(b)
	i := 0
	for b.Loop() {
		i++
		ses := h.context(map[string]string{"Dockerfile": "FROM busybox\nARG N\nENV N=$N\n" + six[len("FROM busybox\n"):], "file": "x"})
		if _, out, err := h.build(ses, "six:latest", func(r *builds.Request) { r.FrontendAttrs["build-arg:N"] = fmt.Sprint(i) }); err != nil {
			b.Fatalf("%v\n%s", err, out.logs.String())
		}
	}
}
