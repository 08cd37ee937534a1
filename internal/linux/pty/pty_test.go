package pty

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// A master travels over the socket, is resized, and read until it is closed by somebody else.
func TestReceive(t *testing.T) {
	ours, theirs, err := Socket()
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skip("no terminals here: ", err)
	}
	if err := unix.Sendmsg(int(theirs.Fd()), []byte("x"), unix.UnixRights(int(master.Fd())), nil, 0); err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	got, err := Receive(ours)
	if err != nil {
		t.Fatal(err)
	}
	if err := Resize(got, 11, 22); err != nil {
		t.Error(err)
	}
	if size, err := unix.IoctlGetWinsize(int(master.Fd()), unix.TIOCGWINSZ); err != nil || size.Row != 11 || size.Col != 22 {
		t.Error(size, err)
	}
	master.Close()
	ended := make(chan error, 1)
	go func() {
		_, err := got.Read(make([]byte, 1))
		ended <- err
	}()
	if err := got.Close(); err != nil {
		t.Error(err)
	}
	if err := <-ended; err == nil {
		t.Error("something was read")
	}
	if _, err := Receive(ours); err == nil {
		t.Error("a second one came")
	}
}
