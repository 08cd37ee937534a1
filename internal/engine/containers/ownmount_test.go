package containers_test

import (
	"bytes"
	"io"
	"testing"

	"corten.dev/corten/internal/engine/containers"
)

// `diff`, `export`, `commit` and `cp -a` of a running container mounted its tree a second time. The kernel then took the work directory from the container's own mount: whatever it had not yet
// changed of its image it could not change any more, "nonexistent directory". It was found as a test that now and then saw one change too few.
func TestLookingIntoARunningContainerLeavesItWhole(t *testing.T) {
	h := newHost(t)
	for what, look := range map[string]func(id string) error{
		"diff":   func(id string) error { _, err := h.svc.Changes(bg, id); return err },
		"export": func(id string) error { return h.svc.Export(bg, id, func() io.Writer { return io.Discard }) },
		"commit": func(id string) error {
			_, err := h.svc.Commit(bg, containers.CommitRequest{Container: id, Pause: true})
			return err
		},
		"cp": func(id string) error {
			return h.svc.ExtractTo(bg, id, "/tmp", bytes.NewReader(make([]byte, 1024)), false, true)
		},
	} {
		for _, engine := range []string{"that started it", "that found it"} {
			req := sh("sleep 600")
			req.Config.User = "root"
			id := h.run(req)
			h.exec(id, "sh", "-c", "echo mine >/etc/hosts.mine; ln -sf x /etc/mtab") // something at a path of ours, too
			if engine == "that found it" {
				h.close()
				h.open()
			}
			for range 2 {
				if err := look(id); err != nil {
					t.Errorf("%s, the engine %s: %v", what, engine, err)
				}
			}
			if out := h.exec(id, "sh", "-c", "echo more >>/data/seed && echo more >>/etc/passwd && cat /data/seed"); out != "seed\nmore\n" {
				t.Errorf("after %s by the engine %s: %q", what, engine, out)
			}
			must(t, h.svc.Remove(bg, id, containers.RemoveOptions{Force: true}))
		}
	}
}
