// Package term is the terminal under the command line: is it one, how large, raw and back.
//
// It owns the terminal's settings between [RawInput] or [NoEcho] and [State.Restore]. It promises that Restore may be called any number of times
// from anywhere, so that an end by signal or panic leaves the user's shell usable.
package term

import "sync"

// State remembers the settings of a terminal that was put into raw mode.
type State struct {
	once    sync.Once
	restore func() error
	err     error
}

// Restore gives the terminal its settings back.
func (s *State) Restore() error {
	if s == nil {
		return nil
	}
	s.once.Do(func() { s.err = s.restore() })
	return s.err
}

// Size is a terminal's size in characters.
type Size struct{ Height, Width uint }
