package containers_test

import (
	"context"
	"testing"

	"corten.dev/corten/internal/engine/containers"
)

// BenchmarkRun is the engine's share of `run --rm busybox true`.
func BenchmarkRun(b *testing.B) {
	h := newHost(b)
	for _, mode := range []string{"bridge", "none"} {
		b.Run(mode, func(b *testing.B) {
			for b.Loop() {
				req := sh("true")
				req.Config.Cmd = []string{"true"}
				req.Host.AutoRemove = true
				req.Host.NetworkMode = mode
				made, err := h.svc.Create(context.Background(), req)
				must(b, err)
				c, err := h.svc.Wait(context.Background(), made.ID, containers.Removed)
				must(b, err)
				must(b, h.svc.Start(context.Background(), made.ID, ""))
				<-c
			}
		})
	}
}
