package main

import (
	"context"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"

	"corten.dev/corten/internal/linux/host"
)

const (
	memoryLook  = 5 * time.Second
	memoryQuiet = 4 << 20   // allocated since the last look: no burst is under way
	memoryIdle  = 256 << 10 // allocated since the last look: nobody asks for anything, who would wait for pages to come back
	memorySpare = 8 << 20   // kept for the next burst
	gcPercent   = 300       // the live heap is a few megabytes: collecting at each doubling would be in the way of every third start, and saves nothing that counts
	memoryFile  = 16 << 20  // of the program's file: starting touches most of it, and a build much that nothing else needs
	gcHeadroom  = 20 << 20  // but what may lie between a large live heap and its next collection does not grow with the number of containers
)

// leanMemory gives back to the kernel what a burst left free, once it is over. A user who sets GOGC decides alone how often the heap is collected.
func leanMemory(ctx context.Context) {
	samples := []metrics.Sample{
		{Name: "/memory/classes/heap/free:bytes"}, {Name: "/memory/classes/heap/unused:bytes"}, {Name: "/gc/heap/live:bytes"}, {Name: "/gc/heap/allocs:bytes"}, {Name: "/memory/classes/heap/objects:bytes"},
	}
	own := os.Getenv("GOGC") == ""
	tick := time.NewTicker(memoryLook)
	defer tick.Stop()
	percent, allocated := gcPercent, uint64(0)
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		metrics.Read(samples)
		at := func(i int) uint64 { return samples[i].Value.Uint64() }
		live := max(at(2), 1<<20)
		if want := int(min(gcPercent, max(50, gcHeadroom*100/live))); own && want != percent {
			percent = want
			debug.SetGCPercent(percent)
		}
		garbage := at(4) - min(at(4), live)
		if at(3)-allocated < memoryQuiet {
			if at(0)+at(1)+garbage > memorySpare {
				debug.FreeOSMemory()
			}
			if n, err := host.FilePages(); err == nil && n > memoryFile && at(3)-allocated < memoryIdle {
				_ = host.ForgetPages() // they stay in memory, then
			}
		}
		allocated = at(3)
	}
}
