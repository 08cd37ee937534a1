package monitortest_test

import (
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"testing"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/monitor"
	"corten.dev/corten/internal/monitor/monitortest"
)

func TestFake(t *testing.T) {
	f := &monitortest.Fake{}
	ctx := context.Background()
	exit := filepath.Join(t.TempDir(), "exit")
	m, err := f.Launch(ctx, monitor.Launch{ID: "c", ExitPath: exit})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Launch(ctx, monitor.Launch{ID: "c"}); !errors.Is(err, errs.Conflict) {
		t.Error(err)
	}
	client, engine := net.Pipe()
	end, err := m.Attach(ctx, engine, monitor.AttachOptions{Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		f.Monitor("c").Write(1, "hello\n")
		f.Monitor("c").End(monitor.Exit{Code: 3})
	}()
	if got, err := io.ReadAll(client); string(got) != "hello\n" || err != nil {
		t.Error(string(got), err)
	}
	<-end
	<-m.Exited()
	if x, err := monitor.ReadExit(exit); err != nil || x.Code != 3 {
		t.Error(x, err)
	}
	m.Close()
	if _, err := f.Open(ctx, "c"); !errors.Is(err, errs.NotFound) {
		t.Error(err)
	}
}
