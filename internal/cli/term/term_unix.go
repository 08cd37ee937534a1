//go:build linux || darwin

package term

import (
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

// IsTerminal tells whether fd is a terminal.
func IsTerminal(fd uintptr) bool {
	_, err := unix.IoctlGetTermios(int(fd), getTermios)
	return err == nil
}

// GetSize asks for the size of the terminal fd.
func GetSize(fd uintptr) (Size, error) {
	ws, err := unix.IoctlGetWinsize(int(fd), unix.TIOCGWINSZ)
	if err != nil {
		return Size{}, err
	}
	return Size{Height: uint(ws.Row), Width: uint(ws.Col)}, nil
}

// RawInput passes every key through as it is, and what is written as well.
func RawInput(fd uintptr) (*State, error) {
	return change(fd, func(t *unix.Termios) {
		t.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
		t.Oflag &^= unix.OPOST
		t.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
		t.Cflag &^= unix.CSIZE | unix.PARENB
		t.Cflag |= unix.CS8
		t.Cc[unix.VMIN], t.Cc[unix.VTIME] = 1, 0
	})
}

func change(fd uintptr, edit func(*unix.Termios)) (*State, error) {
	old, err := unix.IoctlGetTermios(int(fd), getTermios)
	if err != nil {
		return nil, err
	}
	raw := *old
	edit(&raw)
	if err := unix.IoctlSetTermios(int(fd), setTermios, &raw); err != nil {
		return nil, err
	}
	return &State{restore: func() error { return unix.IoctlSetTermios(int(fd), setTermios, old) }}, nil
}

// NotifyResize sends to c when the terminal changes its size.
func NotifyResize(c chan<- os.Signal) { signal.Notify(c, syscall.SIGWINCH) }
