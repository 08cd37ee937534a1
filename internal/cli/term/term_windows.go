package term

import (
	"os"

	"golang.org/x/sys/windows"
)

// IsTerminal tells whether fd is a console.
func IsTerminal(fd uintptr) bool {
	var mode uint32
	return windows.GetConsoleMode(windows.Handle(fd), &mode) == nil
}

// GetSize asks for the size of the console's window.
func GetSize(fd uintptr) (Size, error) {
	var info windows.ConsoleScreenBufferInfo
	if err := windows.GetConsoleScreenBufferInfo(windows.Handle(fd), &info); err != nil {
		return Size{}, err
	}
	w := info.Window
	return Size{Height: uint(w.Bottom - w.Top + 1), Width: uint(w.Right - w.Left + 1)}, nil
}

// RawInput passes every key through as it is.
func RawInput(fd uintptr) (*State, error) {
	var old uint32
	if err := windows.GetConsoleMode(windows.Handle(fd), &old); err != nil {
		return nil, err
	}
	raw := old &^ (windows.ENABLE_ECHO_INPUT | windows.ENABLE_PROCESSED_INPUT | windows.ENABLE_LINE_INPUT)
	raw |= windows.ENABLE_VIRTUAL_TERMINAL_INPUT
	if err := windows.SetConsoleMode(windows.Handle(fd), raw); err != nil {
		return nil, err
	}
	return &State{restore: func() error { return windows.SetConsoleMode(windows.Handle(fd), old) }}, nil
}

// NotifyResize does nothing: Windows has no signal for it, the size is sent once at start.
func NotifyResize(chan<- os.Signal) {}
