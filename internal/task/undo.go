// Package task holds how Corten does work that can fail half way: an undo stack for verbs made of steps, locks by
// name, and a wall around bugs.
//
// It owns no state of the product. It promises that undo steps run backwards, each exactly once, detached from the
// caller's context but bounded in time, and that none of their errors is lost; and that a panic behind the wall is
// an error of the work it is in, with its stack in the log.
package task

import (
	"context"
	"errors"
	"time"
)

// UndoTimeout bounds all undo steps of one verb together.
const UndoTimeout = 30 * time.Second

// Undo is a stack of steps that take back what a verb did so far. The zero value is ready. Not safe for concurrent use.
type Undo struct{ steps []func(context.Context) error }

// Push adds the step that takes back what was just done.
func (u *Undo) Push(step func(context.Context) error) { u.steps = append(u.steps, step) }

// OnError runs the steps backwards if *err is set, and joins their errors to it; else it forgets them. Meant for defer.
func (u *Undo) OnError(ctx context.Context, err *error) {
	if *err == nil {
		u.steps = nil
		return
	}
	if uerr := u.Run(ctx); uerr != nil {
		*err = errors.Join(*err, uerr)
	}
}

// Run runs the steps backwards, whatever happened, and returns their joined errors.
func (u *Undo) Run(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), UndoTimeout)
	defer cancel()
	var all []error
	for i := len(u.steps) - 1; i >= 0; i-- {
		if err := u.steps[i](ctx); err != nil {
			all = append(all, err)
		}
	}
	u.steps = nil
	return errors.Join(all...)
}
