package servertest_test

import (
	"fmt"
	"os"
	"testing"

	"corten.dev/corten/internal/registry/server/servertest"
)

func TestMain(m *testing.M) {
	os.Exit(servertest.Main(m))
}

// BenchmarkRegistry puts the same load on our registry and on Debian's, each in a process of its own:
//
//	go test -run xxx -bench Registry -benchtime 1x ./internal/registry/server/servertest
func BenchmarkRegistry(b *testing.B) {
	for _, which := range []string{"corten", "docker-registry"} {
		for _, load := range []struct {
			name        string
			size, count int
			pulls       int
			workers     int
		}{
			{"small", 4 << 10, 2000, 20000, 16},
			{"large", 64 << 20, 12, 48, 4},
		} {
			b.Run(which+"/"+load.name, func(b *testing.B) {
				root, addr := b.TempDir(), servertest.FreeAddr(b)
				var p *servertest.Process
				if which == "corten" {
					p = servertest.StartProcess(b, root, addr, 0)
				} else {
					p = servertest.StartDockerRegistry(b, root, addr)
				}
				o := servertest.LoadOptions{Addr: addr, Repo: "load/test", Workers: load.workers, Size: load.size, Count: load.count}
				for i := range b.N {
					o.Seed = uint64(i+1) << 32
					measure(b, p, o, load.pulls)
				}
			})
		}
	}
}

func measure(b *testing.B, p *servertest.Process, o servertest.LoadOptions, pulls int) {
	b.Helper()
	start := p.Usage(b)
	push, err := o.Push(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	pushed := p.Usage(b)
	o.Blobs, o.Count = push.Blobs, pulls
	pull, err := o.Pull(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	pulled := p.Usage(b)
	b.ReportMetric(push.Rate(), "push-req/s")
	b.ReportMetric(push.MBps(), "push-MB/s")
	b.ReportMetric(pull.Rate(), "pull-req/s")
	b.ReportMetric(pull.MBps(), "pull-MB/s")
	b.ReportMetric(float64((pushed.CPU-start.CPU).Microseconds())/float64(len(push.Blobs)), "push-cpu-µs/blob")
	b.ReportMetric(float64((pulled.CPU-pushed.CPU).Microseconds())/float64(pulls), "pull-cpu-µs/blob")
	b.ReportMetric(float64(pulled.PeakRSS)/1e6, "peak-RSS-MB")
	b.ReportMetric(0, "ns/op")
	b.Log(fmt.Sprintf("push %v, pull %v", push.Elapsed, pull.Elapsed))
}
