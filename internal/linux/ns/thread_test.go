package ns

import (
	"runtime"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// The engine's bare mount namespace was made on whatever thread came, and now and then that was the first one: /proc/self/mountinfo then had a single line, for good.
func TestOwnThreadIsNeverTheFirst(t *testing.T) {
	var all sync.WaitGroup
	for range 200 {
		all.Go(func() {
			for range 20 {
				runtime.Gosched()
				OnOwnThread(func() {
					if unix.Gettid() == unix.Getpid() {
						t.Error("on the first thread")
					}
				})
			}
		})
	}
	all.Wait()
}
