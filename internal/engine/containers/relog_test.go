package containers_test

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"corten.dev/corten/internal/container"
	"corten.dev/corten/internal/engine/containers"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/logs/jsonfile"
	"corten.dev/corten/internal/logs/ship"
	"corten.dev/corten/internal/logs/shiptest"
	"corten.dev/corten/internal/logs/syslog"
)

func logDrivers(name string) ship.Driver {
	switch name {
	case "syslog":
		return syslog.Driver{}
	case "json-file":
		return jsonfile.Driver{}
	}
	return nil
}

// relogged is a container that says what it is told to.
func relogged(t *testing.T) (h *host, id string, say func(word string)) {
	t.Helper()
	h = newHost(t)
	h.close()
	h.opts.LogDrivers = logDrivers
	h.open()
	id = h.run(sh("trap 'exit 0' TERM; echo began; sleep 1000 & wait"))
	h.says(id, "began", 1)
	return h, id, func(word string) {
		t.Helper()
		h.exec(id, "sh", "-c", "echo "+word+" > /proc/1/fd/1")
		h.until(id, "its log to say "+word, func(containers.View) bool { return strings.Contains(h.logs(id), word) })
	}
}

func TestEditLogDriver(t *testing.T) {
	h, id, say := relogged(t)
	pid := h.inspect(id).State.PID
	rcv := shiptest.Listen(t, "tcp", "", nil)
	has := func(word string) bool { return strings.Contains(text(rcv), word) }
	say("before")
	driver := "syslog"
	to := containers.EditRequest{LogDriver: &driver, LogOptions: map[string]string{"syslog-address": "tcp://" + rcv.Address, "tag": "first"}}
	dry := to
	dry.DryRun = true
	changes := []string{"log driver syslog", "add log option syslog-address", "add log option tag"}
	h.edit(id, dry, containers.EditLive, changes...)
	h.edit(id, to, containers.EditLive, changes...)
	say("after")
	wait30(t, "a message at the new driver", func() bool { return has("after") })
	// Other options, another address of the same driver: it goes on where it was.
	other := shiptest.Listen(t, "tcp", "", nil)
	h.edit(id, containers.EditRequest{LogOptions: map[string]string{"tag": "second", "syslog-address": "tcp://" + other.Address}}, containers.EditLive, "change log option syslog-address", "change log option tag")
	say("third")
	wait30(t, "a message at the new address", func() bool { return strings.Contains(text(other), "third") })
	// Another beside it, and the next engine.
	driver = "json-file,syslog"
	opts := map[string]string{"tag": "second", "syslog-address": "tcp://" + other.Address}
	h.edit(id, containers.EditRequest{LogDriver: &driver, LogOptions: opts}, containers.EditLive, "log driver json-file,syslog")
	h.close()
	h.open()
	say("fourth")
	file := h.inspect(id).LogPath
	wait30(t, "the line in the file", func() bool { b, _ := os.ReadFile(file); return strings.Contains(string(b), "fourth") })
	wait30(t, "a message of the next engine", func() bool { return strings.Contains(text(other), "fourth") })
	if b, err := os.ReadFile(file); err != nil || strings.Count(string(b), "\n") != 1 || !strings.Contains(string(b), `"tag":"second"`) {
		t.Errorf("json-file has what was said before it was there: %s %v", b, err)
	}
	// Away from syslog, and back: what was said meanwhile is not for it.
	h.edit(id, containers.EditRequest{Undo: true}, containers.EditLive, "log driver syslog")
	own := "local"
	h.edit(id, containers.EditRequest{LogDriver: &own}, containers.EditLive, "log driver local", "remove log option syslog-address", "remove log option tag")
	say("fifth")
	h.edit(id, containers.EditRequest{Undo: true}, containers.EditLive, "log driver syslog", "add log option syslog-address", "add log option tag")
	say("sixth")
	wait30(t, "a message after undo", func() bool { return strings.Contains(text(other), "sixth") })
	if got := text(rcv); strings.Contains(got, "before") || strings.Contains(got, "third") || !strings.Contains(got, "first") {
		t.Errorf("the first receiver has %q", got)
	}
	got := text(other)
	for _, line := range []string{"third", "fourth", "sixth"} {
		if strings.Count(got, line) != 1 {
			t.Errorf("%s is there %d times: %q", line, strings.Count(got, line), got)
		}
	}
	if strings.Contains(got, "fifth") || strings.Contains(got, "after") || !strings.Contains(got, "second") {
		t.Errorf("the second receiver has %q", got)
	}
	if h.inspect(id).State.PID != pid {
		t.Error("its process was started again")
	}
}

func TestEditLogDriverThatFails(t *testing.T) {
	h, id, say := relogged(t)
	pid := h.inspect(id).State.PID
	rcv := shiptest.Listen(t, "tcp", "", nil)
	driver := "syslog"
	h.edit(id, containers.EditRequest{LogDriver: &driver, LogOptions: map[string]string{"syslog-address": "tcp://" + rcv.Address}}, containers.EditLive, "log driver syslog", "add log option syslog-address")
	had := h.inspect(id).Host.Log
	// Nobody listens there: it goes on as it was.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	nobody := l.Addr().String()
	must(t, l.Close())
	_, err = h.svc.Edit(bg, id, containers.EditRequest{LogOptions: map[string]string{"syslog-address": "tcp://" + nobody}})
	wants(t, err, errs.Unavailable, "connection refused")
	for _, bad := range []struct {
		opts map[string]string
		text string
	}{
		{map[string]string{"colour": "red"}, "unknown log opt 'colour' for syslog log driver"},
		{map[string]string{"tag": ""}, "log option tag is not set"},
		{map[string]string{"tag": "{{.Nothing}}"}, "Nothing"},
	} {
		_, err = h.svc.Edit(bg, id, containers.EditRequest{LogOptions: bad.opts})
		wants(t, err, errs.Invalid, bad.text)
	}
	say("still")
	wait30(t, "the old driver's message", func() bool { return strings.Contains(text(rcv), "still") })
	view := h.inspect(id)
	if fmt.Sprint(view.Host.Log) != fmt.Sprint(had) || view.State.PID != pid {
		t.Errorf("%v, pid %d was %d", view.Host.Log, view.State.PID, pid)
	}
	// How the monitor keeps the log is told at its start. The file tells: the bound makes more of them.
	own := "local"
	h.edit(id, containers.EditRequest{LogDriver: &own, LogOptions: map[string]string{"max-size": "4k", "max-file": "2"}}, containers.EditRestart, "log driver local", "add log option max-file", "add log option max-size", "remove log option syslog-address", "how its own log is kept")
	h.says(id, "began", 2)
	h.exec(id, "sh", "-c", "seq 4000 > /proc/1/fd/1")
	h.until(id, "the log to stay within its bound", func(containers.View) bool {
		files, err := filepath.Glob(filepath.Join(h.inspect(id).LogPath, "*"))
		must(t, err)
		var size int64
		for _, f := range files {
			if st, err := os.Stat(f); err == nil {
				size += st.Size()
			}
		}
		return strings.Contains(h.logs(id), "\n4000\n") && size < 16<<10
	})
	// A new driver that is away when the process is started again: what was before runs again.
	driver = "syslog"
	_, err = h.svc.Edit(bg, id, containers.EditRequest{LogDriver: &driver, LogOptions: map[string]string{"syslog-address": "tcp://" + nobody}})
	wants(t, err, errs.Unavailable, "connection refused; what was before runs again")
	if view := h.inspect(id); view.State.Status != container.Running || view.Host.Log.Type != "local" || view.Trial {
		t.Errorf("%+v", view.Record)
	}
	// One that does not run: the next start hands on only what it says from then on.
	must(t, h.svc.Stop(bg, id, containers.StopOptions{}))
	again := shiptest.Listen(t, "tcp", "", nil)
	h.edit(id, containers.EditRequest{LogDriver: &driver, LogOptions: map[string]string{"syslog-address": "tcp://" + again.Address}}, containers.EditNext,
		"log driver syslog", "remove log option max-file", "remove log option max-size", "add log option syslog-address", "how its own log is kept")
	must(t, h.svc.Start(bg, id, ""))
	wait30(t, "its first line", func() bool { return strings.Contains(text(again), "began") })
	if n := strings.Count(text(again), "\n"); n != 1 {
		t.Errorf("%d messages: %q", n, text(again))
	}
}

func text(r *shiptest.Receiver) string { return string(r.Bytes()) }
