package ns

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// OnOwnThread runs fn on a thread that ends afterwards, and waits for it: fn may leave the thread in other namespaces, or at another priority.
//
// It is never the process's first thread. Go cannot end that one, and it stands for the whole process in /proc/self: once it lay in a namespace without mounts, the whole engine
// seemed to have none.
func OnOwnThread(fn func()) {
	done := make(chan struct{})
	go onOwnThread(fn, done)
	<-done
}

func onOwnThread(fn func(), done chan struct{}) {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		go onOwnThread(fn, done) // on another thread, because this one is taken until then
		<-done
		runtime.UnlockOSThread()
		return
	}
	defer close(done) // the goroutine ends locked, and the thread with it
	fn()
}
