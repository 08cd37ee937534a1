package steps_test

import (
	"errors"
	"net"
	"strings"
	"testing"

	"corten.dev/corten/internal/build"
)

func TestRun(t *testing.T) {
	h := newHost(t)
	l, err := net.Listen("tcp", h.gateway()+":0")
	must(t, err)
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Write([]byte("hello from the host\n"))
			c.Close()
		}
	}()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	chain, out := h.do(h.sh("echo to stdout; echo to stderr >&2; echo made >/made; nc " + h.gateway() + " " + port + " </dev/null"))
	for _, want := range []string{"to stdout\n", "to stderr\n", "hello from the host\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in %q", want, out)
		}
	}
	if got := h.files(chain); got != "made:5" {
		t.Errorf("the layer has %s", got)
	}
	_, _, err = h.try(h.sh("exit 3"))
	var failed *build.StepError
	if !errors.As(err, &failed) || err.Error() != `process "/bin/sh -c exit 3" did not complete successfully: exit code: 3` || failed.ExitCode != 3 {
		t.Error(err)
	}
}
