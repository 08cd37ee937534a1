package remote_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"corten.dev/corten/internal/logs/remote"
	"corten.dev/corten/internal/logs/ship"
	"corten.dev/corten/internal/logs/shiptest"
	"corten.dev/corten/internal/plugin"
)

func TestPlugin(t *testing.T) {
	dir, err := os.MkdirTemp("", "plg") // unix sockets need a short path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	l := shiptest.NewLogger(t, dir)
	set := plugin.New(plugin.Options{Folders: []string{dir}})
	if remote.Find(set, "nobody") != nil {
		t.Error("found where nothing is")
	}
	d := remote.Find(set, "logger")
	if d == nil || d.Name() != "logger" {
		t.Fatal(d)
	}
	info := shiptest.Info(map[string]string{"any": "thing"})
	info.LogPath = filepath.Join(t.TempDir(), "x-json.log")
	msgs := shiptest.Messages("hello", "", "!oh no", "piece", "end")
	msgs[3].Ends, msgs[3].Partial = false, ship.Partial{ID: "abc", Ordinal: 1}
	msgs[4].Partial = ship.Partial{ID: "abc", Ordinal: 2, Last: true}
	dest := shiptest.Send(t, d, info, msgs)
	want := fmt.Sprintf("1=stdout 2=%d 3=hello\n1=stdout 2=%d 3=\n1=stderr 2=%d 3=!oh no\n1=stdout 2=%d 3=piece 4=1 5={2=abc 3=1}\n1=stdout 2=%d 3=end 4=1 5={1=1 2=abc 3=2}",
		msgs[0].Time.UnixNano(), msgs[1].Time.UnixNano(), msgs[2].Time.UnixNano(), msgs[3].Time.UnixNano(), msgs[4].Time.UnixNano())
	shiptest.Eventually(t, "the messages", func() bool { return l.Said() == want })
	if got := l.Started()[0]["Info"].(map[string]any); got["ContainerName"] != "/web" || got["Config"].(map[string]any)["any"] != "thing" || got["DaemonName"] != "docker" || got["Host"] != nil {
		t.Errorf("info: %v", got)
	}
	// A plugin that stops reading loses nothing: what it did not read is not counted as sent.
	l.HangUp()
	if n, err := dest.Send(t.Context(), shiptest.Messages("lost?")); n != 0 || err == nil {
		t.Errorf("sent %d, %v", n, err)
	}
	if err := dest.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(l.Stopped()[0]); !os.IsNotExist(err) {
		t.Errorf("the pipe stays: %v", err)
	}
	l.Refuse("not today")
	if _, err := d.Open(t.Context(), info); err == nil || !strings.Contains(err.Error(), "error creating logger: logger: ") || !strings.Contains(err.Error(), "not today") {
		t.Errorf("got %v", err)
	}
}
