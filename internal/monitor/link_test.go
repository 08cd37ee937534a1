package monitor

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

// An engine that took monitors over warned "use of closed file" when it ended one that had just gone by itself: closing twice is no error, and asking then says that the monitor is gone.
func TestShutAfterEnd(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[1])
	l := newLink(pair[0])
	l.end()
	if err := l.shut(); err != nil {
		t.Error("shut: ", err)
	}
	if _, err := l.call(t.Context(), nil); !errors.Is(err, errGone) {
		t.Error("call: ", err)
	}
}
