package containers

import (
	"strings"
	"syscall"

	"github.com/moby/sys/signal"

	"corten.dev/corten/internal/errs"
)

// parseSignal reads a name with or without SIG, or a number.
func parseSignal(s string) (syscall.Signal, error) {
	sig, err := signal.ParseSignal(s)
	if err == nil && sig > 64 {
		return 0, errs.New(errs.Invalid, "the linux daemon does not support signal %s", s)
	}
	if err != nil || sig < 0 {
		return 0, errs.New(errs.Invalid, "invalid signal: %s", s)
	}
	return sig, nil
}

// cutHost splits --add-host name:address (or name=address).
func cutHost(extra string) (name, addr string, ok bool) {
	i := strings.IndexAny(extra, ":=")
	if i <= 0 {
		return "", "", false
	}
	addr = strings.Trim(extra[i+1:], "[]")
	return extra[:i], addr, addr != ""
}
