package task

import (
	"fmt"
	"log/slog"
	"runtime/debug"
)

// Contain makes an error of a panic in the function that defers it: a bug in one piece of work must not end the engine with everything else that runs in it. It belongs at the top of each goroutine that runs
// such work, and where a library calls back from its own. what names the work; the stack goes to the log only. err may be nil where nobody waits for the end.
//
//	defer task.Contain(log, "build step "+name, &err)
func Contain(log *slog.Logger, what string, err *error) {
	bug := recover()
	if bug == nil {
		return
	}
	log.Error("a bug of the engine", "in", what, "bug", bug, "stack", string(debug.Stack()))
	if err != nil {
		*err = fmt.Errorf("%s: bug of the engine: %v; its log has the details", what, bug)
	}
}
