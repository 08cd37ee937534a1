package server_test

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/enginetest"
	"corten.dev/corten/internal/registry/server"
	"corten.dev/corten/internal/registry/server/servertest"
)

func TestMain(m *testing.M) {
	os.Exit(servertest.Main(m))
}

// killGrace is long enough for a push on a busy machine, and short enough that collections find something.
const killGrace = 3 * time.Second

// TestKilled kills a registry at random moments while images are pushed and deleted and garbage is collected all the time. After each restart, what got
// 201 is whole, what is visible is whole, and a large upload goes on where it was. In the end, nothing is left of what was deleted.
func TestKilled(t *testing.T) {
	t.Parallel() // most of it is waiting
	root, addr := t.TempDir(), enginetest.Addr(t)
	k := &killed{client: newClient(t, "http://"+addr), kept: map[string]bool{}, stop: make(chan struct{})}
	p := servertest.StartProcess(t, root, addr, killGrace)
	var wg sync.WaitGroup
	for w := range 3 {
		wg.Go(func() { k.pushing(t, w) })
	}
	wg.Go(func() { k.uploading(t) })
	kills := 0
	for started := time.Now(); time.Since(started) < 4*time.Second || !k.enough() && time.Since(started) < 2*time.Minute; kills++ {
		time.Sleep(time.Duration(50+mathrand.IntN(400)) * time.Millisecond)
		p.Kill()
		p = servertest.StartProcess(t, root, addr, killGrace)
		k.look(t)
	}
	close(k.stop)
	wg.Wait()
	k.look(t)
	t.Logf("%d kills, %d images kept of %d, %d uploads resumed to their end in %d pieces", kills, len(k.kept), k.pushed, k.uploads, k.pieces)
	if !k.enough() {
		t.Error("too little happened: the test proves nothing")
	}
	p.Kill()
	k.empty(t, root)
}

type killed struct {
	*client
	stop chan struct{}

	mu      sync.Mutex // guards the rest
	kept    map[string]bool
	pushed  int
	uploads int
	pieces  int
}

// enough tells whether so much was pushed, and so much resumed, that the test proves something.
func (k *killed) enough() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.pushed > 0 && k.uploads > 0 && k.pieces > k.uploads
}

func (k *killed) stopped() bool {
	select {
	case <-k.stop:
		return true
	default:
		return false
	}
}

// refused tells a registry's own refusal from a connection that broke.
func refused(err error) bool {
	return err != nil && (strings.Contains(err.Error(), `"errors"`) || strings.Contains(err.Error(), ": 4"))
}

// pushing pushes images of shared layers, and deletes every other one.
func (k *killed) pushing(t *testing.T, w int) {
	for i := 0; !k.stopped(); i++ {
		tag := fmt.Sprintf("t%d-%d", w, i)
		began := time.Now()
		_, err := k.image("kill/me", tag, []byte(`{"tag":"`+tag+`"}`), fmt.Appendf(nil, "layer %d", mathrand.IntN(20)), fmt.Appendf(nil, "layer %d", mathrand.IntN(20)))
		if err != nil {
			if refused(err) && time.Since(began) < killGrace/2 {
				t.Errorf("push of %s: %v", tag, err)
				return
			}
			time.Sleep(20 * time.Millisecond)
			continue
		}
		k.mu.Lock()
		k.pushed++
		k.kept[tag] = true
		k.mu.Unlock()
		if i%2 == 0 {
			k.mu.Lock()
			delete(k.kept, tag) // before: from here on it may be there or not
			k.mu.Unlock()
			k.status("DELETE", "/v2/kill/me/manifests/"+tag)
		}
	}
}

// uploading sends a large blob in chunks, goes on where the registry says, and begins with the next one.
func (k *killed) uploading(t *testing.T) {
	for !k.stopped() {
		data := make([]byte, 24<<20)
		_, _ = rand.Read(data)
		var up pieces
		for !up.done && !k.stopped() {
			err := k.piece(&up, data)
			if refused(err) {
				t.Errorf("upload: %v", err)
				return
			}
			if err != nil {
				time.Sleep(20 * time.Millisecond)
			}
		}
	}
}

// pieces is where an upload stands, as its client knows.
type pieces struct {
	loc    string
	closed bool // a PUT was sent: if it was not answered, the session may be over
	done   bool
}

func (k *killed) piece(up *pieces, data []byte) error {
	if up.loc == "" {
		status, h, _, err := k.do("POST", "/v2/kill/large/blobs/uploads/", "", nil)
		if err != nil || status != 202 {
			return fmt.Errorf("post: %d: %w", status, err)
		}
		up.loc = h.Get("Location")
	}
	status, h, body, err := k.do("GET", up.loc, "", nil)
	if err == nil && status == 404 && up.closed {
		*up = pieces{done: true} // killed between naming it and answering
		return nil
	}
	if err != nil || status != 204 {
		return fmt.Errorf("status: %d %s: %w", status, body, err)
	}
	var end int
	if _, err := fmt.Sscanf(h.Get("Range"), "0-%d", &end); err != nil {
		return err
	}
	start := 0
	if end > 0 {
		start = end + 1
	}
	if start == len(data) {
		return k.closing(up, data)
	}
	stop := min(start+3<<20, len(data))
	req, err := http.NewRequest("PATCH", k.url+up.loc, bytes.NewReader(data[start:stop]))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Range", fmt.Sprintf("%d-%d", start, stop-1))
	resp, err := k.http.Do(req)
	if err != nil {
		return err
	}
	k.mu.Lock()
	k.pieces++
	k.mu.Unlock()
	if resp.StatusCode != 202 && resp.StatusCode != 416 { // 416: the old connection still brought something
		err = fmt.Errorf("patch: %d", resp.StatusCode)
	}
	return errors.Join(err, resp.Body.Close())
}

func (k *killed) closing(up *pieces, data []byte) error {
	up.closed = true
	d := digest.FromBytes(data)
	status, _, body, err := k.do("PUT", up.loc+"?digest="+string(d), "", nil)
	if err != nil || status != 201 {
		return fmt.Errorf("put: %d %s: %w", status, body, err)
	}
	up.done = true
	k.mu.Lock()
	defer k.mu.Unlock()
	k.uploads++
	return nil
}

// look checks that what was accepted is there, and that what is visible is whole.
func (k *killed) look(t *testing.T) {
	t.Helper()
	k.mu.Lock()
	tags := make([]string, 0, len(k.kept))
	for tag := range k.kept {
		tags = append(tags, tag)
	}
	k.mu.Unlock()
	if len(tags) > 15 { // those that are new are the ones that matter
		mathrand.Shuffle(len(tags), func(i, j int) { tags[i], tags[j] = tags[j], tags[i] })
		tags = tags[:15]
	}
	for _, tag := range tags {
		k.mu.Lock()
		there := k.kept[tag]
		k.mu.Unlock()
		if err := k.whole("kill/me", tag); err != nil && there {
			k.mu.Lock()
			there = k.kept[tag]
			k.mu.Unlock()
			if there {
				t.Errorf("after a kill: %v", err)
			}
		}
	}
}

// empty deletes everything with a registry of this process, and collects.
func (k *killed) empty(t *testing.T, root string) {
	r, ts := registryOn(t, root, func(o *server.Options) {
		o.Limits.Grace, o.Limits.UploadAge = 50*time.Millisecond, time.Millisecond
	})
	c := newClient(t, ts.URL)
	var tags []string
	ok(t, r.Tags(t.Context(), "kill/me", func(tag string) error { tags = append(tags, tag); return nil }))
	for _, tag := range tags {
		status, h, _, err := c.do("HEAD", "/v2/kill/me/manifests/"+tag, "", nil)
		ok(t, err)
		if status == 404 {
			continue // it is of a manifest that was deleted just before
		}
		ok(t, c.whole("kill/me", tag))
		if s := c.status("DELETE", "/v2/kill/me/manifests/"+h.Get("Docker-Content-Digest")); s != 202 {
			t.Errorf("delete %s: %d", tag, s)
		}
	}
	time.Sleep(100 * time.Millisecond)
	collect(t, r, server.CollectOptions{Rules: []server.Rule{{Untagged: time.Millisecond}}})
	if b, v, u := files(t, root, "blobs"), files(t, root, "values"), files(t, root, "uploads"); b+v+u != 0 {
		t.Errorf("%d blobs, %d values and %d uploads are left", b, v, u)
	}
}
