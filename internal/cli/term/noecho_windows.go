package term

import "golang.org/x/sys/windows"

// NoEcho hides what is typed, for passwords.
func NoEcho(fd uintptr) (*State, error) {
	var old uint32
	if err := windows.GetConsoleMode(windows.Handle(fd), &old); err != nil {
		return nil, err
	}
	hidden := old&^windows.ENABLE_ECHO_INPUT | windows.ENABLE_PROCESSED_INPUT | windows.ENABLE_LINE_INPUT
	if err := windows.SetConsoleMode(windows.Handle(fd), hidden); err != nil {
		return nil, err
	}
	return &State{restore: func() error { return windows.SetConsoleMode(windows.Handle(fd), old) }}, nil
}
