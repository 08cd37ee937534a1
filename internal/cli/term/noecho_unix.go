//go:build linux || darwin

package term

import "golang.org/x/sys/unix"

// NoEcho hides what is typed, for passwords.
func NoEcho(fd uintptr) (*State, error) {
	return change(fd, func(t *unix.Termios) {
		t.Lflag &^= unix.ECHO
		t.Lflag |= unix.ICANON | unix.ISIG
		t.Iflag |= unix.ICRNL
	})
}
