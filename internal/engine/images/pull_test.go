package images

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/manifest"
)

func TestPull(t *testing.T) {
	b := newBench(t)
	doc := b.reg.add(t, "latest", here, "base", "top")
	_, listener := b.Events.Subscribe(time.Time{})
	defer listener.Close()
	var l lines
	if err := b.Pull(t.Context(), PullOptions{Ref: "busybox"}, l.report); err != nil {
		t.Fatal(err)
	}
	base, top := short(digest.FromString("base")), short(digest.FromString("top"))
	for _, want := range []string{"latest: Pulling from library/busybox", base + ": Pulling fs layer", top + ": Verifying Checksum", top + ": Download complete", base + ": Pull complete",
		"Digest: " + doc.Digest.String(), "Status: Downloaded newer image for busybox:latest"} {
		if !l.has(want) {
			t.Errorf("no %q in\n%s", want, strings.Join(l.got, "\n"))
		}
	}
	if l.got[0] != "latest: Pulling from library/busybox" || l.got[len(l.got)-1] != "Status: Downloaded newer image for busybox:latest" {
		t.Error(l.got)
	}
	e := <-listener.C
	if e.Action != "pull" || e.ID != "busybox:latest" || e.Attributes["name"] != "busybox" || e.Attributes["tier"] != "front" {
		t.Errorf("%+v", e)
	}
	img, err := b.store.Get(t.Context(), "busybox")
	if err != nil || !slices.Equal(img.Digests, []string{"busybox@" + doc.Digest.String()}) {
		t.Error(img, err)
	}
	if len(b.blobs.whole) > 0 || len(b.blobs.parts) > 0 {
		t.Error("blobs are left")
	}
	// Again: one HEAD tells that nothing changed.
	b.reg.asked = nil
	l = lines{}
	if err := b.Pull(t.Context(), PullOptions{Ref: "busybox"}, l.report); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(l.got, "\n"); got != "latest: Pulling from library/busybox\nDigest: "+doc.Digest.String()+"\nStatus: Image is up to date for busybox:latest" || !slices.Equal(b.reg.asked, []string{"HEAD latest"}) {
		t.Error(got, b.reg.asked)
	}
	// By digest, of what is here: no request at all.
	b.reg.asked = nil
	if err := b.Pull(t.Context(), PullOptions{Ref: "busybox@" + doc.Digest.String()}, l.report); err != nil || len(b.reg.asked) > 0 {
		t.Error(err, b.reg.asked)
	}
	// Another tag of the same image: only the manifest.
	b.reg.tags["1"] = doc.Digest
	l = lines{}
	b.reg.asked = nil
	if err := b.Pull(t.Context(), PullOptions{Ref: "busybox:1"}, l.report); err != nil || !slices.Equal(b.reg.asked, []string{"GET 1"}) || !l.has(base+": Already exists") {
		t.Error(err, b.reg.asked, l.got)
	}
	l = lines{}
	if err := b.Pull(t.Context(), PullOptions{Ref: "busybox", AllTags: true}, l.report); err != nil || !l.has("Status: Image is up to date for busybox") || !l.has("1: Pulling from library/busybox") {
		t.Error(err, l.got)
	}
}

// Unpacking begins while the rest is still on its way.
func TestPullUnpacksWhileItDownloads(t *testing.T) {
	b := newBench(t)
	b.reg.add(t, "latest", here, "0123456789")
	d := digest.FromString("0123456789")
	b.reg.gate[d] = make(chan struct{})
	b.store.unpacking = func(_ int, r io.Reader) {
		if _, err := io.ReadFull(r, make([]byte, 0)); err != nil {
			t.Error(err)
		}
	}
	read := make(chan struct{})
	b.store.unpacking = func(_ int, r io.Reader) { close(read) }
	go func() {
		<-read
		close(b.reg.gate[d])
	}()
	var l lines
	if err := b.Pull(t.Context(), PullOptions{Ref: "x"}, l.report); err != nil {
		t.Fatal(err)
	}
}

// A caller that leaves keeps what came for the next time; the second pull asks for the rest only.
func TestPullResumes(t *testing.T) {
	b := newBench(t)
	b.reg.add(t, "latest", here, "0123456789")
	d := digest.FromString("0123456789")
	b.reg.gate[d] = make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	var l lines
	err := b.Pull(ctx, PullOptions{Ref: "x"}, func(r Report) {
		l.report(r)
		if r.Current == 5 {
			cancel()
		}
	})
	if !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	b.flights.ends.Wait()
	if got := string(b.blobs.parts[d.String()]); got != "01234" {
		t.Fatalf("%q", got)
	}
	close(b.reg.gate[d])
	if err := b.Pull(t.Context(), PullOptions{Ref: "x"}, l.report); err != nil {
		t.Fatal(err)
	}
	if b.reg.fetched[d] != 10 {
		t.Errorf("%d bytes were fetched", b.reg.fetched[d])
	}
	// What was left is damaged: fetched once more, and nobody need know.
	b.reg.add(t, "latest", here, "abcdefghij")
	d = digest.FromString("abcdefghij")
	b.blobs.parts[d.String()] = []byte("aXc")
	if err := b.Pull(t.Context(), PullOptions{Ref: "x"}, l.report); err != nil {
		t.Fatal(err)
	}
	if b.reg.fetched[d] != 17 || b.reg.fetches[d] != 2 {
		t.Errorf("%d bytes were fetched", b.reg.fetched[d])
	}
}

// Two pulls of one layer: one download, one unpacking, and the one that goes on is not disturbed by the one that leaves.
func TestPullsShare(t *testing.T) {
	b := newBench(t)
	b.reg.add(t, "a", here, "0123456789", "a")
	b.reg.add(t, "b", here, "0123456789", "b")
	d := digest.FromString("0123456789")
	b.reg.gate[d] = make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var all sync.WaitGroup
	var errA, errB error
	began := make(chan struct{}, 2)
	half := func(seen *bool) Reporter {
		return func(r Report) {
			if r.Current == 5 && !*seen {
				*seen = true
				began <- struct{}{}
			}
		}
	}
	var seenA, seenB bool
	left := make(chan struct{})
	all.Go(func() { errA = b.Pull(ctx, PullOptions{Ref: "x:a"}, half(&seenA)); close(left) })
	all.Go(func() { errB = b.Pull(t.Context(), PullOptions{Ref: "x:b"}, half(&seenB)) })
	<-began
	<-began
	cancel()
	<-left
	close(b.reg.gate[d])
	all.Wait()
	if !errors.Is(errA, context.Canceled) || errB != nil {
		t.Fatal(errA, errB)
	}
	if b.reg.fetches[d] != 1 {
		t.Errorf("%d downloads", b.reg.fetches[d])
	}
	// One that comes when the layer is there already needs nothing.
	if err := b.Pull(t.Context(), PullOptions{Ref: "x:a"}, func(Report) {}); err != nil || b.reg.fetches[d] != 1 {
		t.Error(err, b.reg.fetches[d])
	}
}

// A download that fails for one repository does not fail the pull from another.
func TestPullDoesNotInheritErrors(t *testing.T) {
	b := newBench(t)
	b.reg.add(t, "latest", here, "0123456789")
	d := digest.FromString("0123456789")
	b.reg.gate[d], b.reg.fail[d] = make(chan struct{}), errs.New(errs.Unavailable, "gone away")
	var all sync.WaitGroup
	var errA, errB error
	began := make(chan struct{}, 100)
	note := func(r Report) {
		if r.Current == 5 {
			began <- struct{}{}
		}
	}
	all.Go(func() { errA = b.Pull(t.Context(), PullOptions{Ref: "one.example/x"}, note) })
	<-began
	all.Go(func() { errB = b.Pull(t.Context(), PullOptions{Ref: "two.example/x"}, note) })
	for {
		b.flights.mu.Lock()
		users := b.flights.all[d].users
		b.flights.mu.Unlock()
		if users == 2 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	gate := b.reg.gate[d]
	b.reg.mu.Lock()
	delete(b.reg.gate, d)
	delete(b.reg.fail, d)
	b.reg.mu.Unlock()
	close(gate)
	all.Wait()
	if errA == nil || !strings.Contains(errA.Error(), "gone away") || errB != nil {
		t.Error(errA, errB)
	}
}

func TestPullLimit(t *testing.T) {
	b := newBench(t)
	b.flights.limit = newLimit(2)
	var layers []string
	for i := range 6 {
		layers = append(layers, strings.Repeat("x", 10+i))
	}
	b.reg.add(t, "latest", here, append(layers, layers[0])...) // one of them twice
	open := make(chan struct{})
	for _, l := range layers {
		b.reg.gate[digest.FromString(l)] = open
	}
	var l lines
	var mu sync.Mutex // guards l
	go func() {       // until it is as far as it may go
		defer close(open)
		for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
			mu.Lock()
			waiting := strings.Contains(strings.Join(l.got, "\n"), ": Waiting")
			mu.Unlock()
			b.reg.mu.Lock()
			most := b.reg.most
			b.reg.mu.Unlock()
			if waiting && most >= 2 {
				return
			}
		}
	}()
	if err := b.Pull(t.Context(), PullOptions{Ref: "x"}, func(r Report) {
		mu.Lock()
		defer mu.Unlock()
		l.report(r)
	}); err != nil {
		t.Fatal(err)
	}
	if b.reg.most != 2 || !strings.Contains(strings.Join(l.got, "\n"), ": Waiting") || b.reg.fetches[digest.FromString(layers[0])] != 1 {
		t.Errorf("%d at a time, %d times: %v", b.reg.most, b.reg.fetches[digest.FromString(layers[0])], l.got)
	}
}

func TestPullPlatforms(t *testing.T) {
	b := newBench(t)
	arm := manifest.Platform{OS: "linux", Arch: "arm64"}
	one, two := b.reg.add(t, "", here, "base", "amd"), b.reg.add(t, "", arm, "base", "arm")
	note := descOf(b.reg.add(t, "", manifest.Platform{}, "attest"), manifest.Platform{OS: "unknown", Arch: "unknown"})
	index := b.reg.index(t, "latest", descOf(one, here), descOf(two, arm), note)
	var l lines
	if err := b.Pull(t.Context(), PullOptions{Ref: "x"}, l.report); err != nil || !l.has("Digest: "+index.Digest.String()) {
		t.Fatal(err, l.got)
	}
	if err := b.Pull(t.Context(), PullOptions{Ref: "x", Platform: "linux/arm64"}, l.report); err != nil {
		t.Fatal(err)
	}
	if img, err := b.store.Get(t.Context(), "x"); err != nil || img.Config.Architecture != "arm64" {
		t.Error(img, err)
	}
	if b.reg.fetches[digest.FromString("base")] != 1 {
		t.Error("the shared layer was fetched twice")
	}
	if err := b.Pull(t.Context(), PullOptions{Ref: "x", Platform: "riscv64"}, l.report); !errors.Is(err, errs.NotFound) || !strings.Contains(err.Error(), "linux/amd64, linux/arm64") {
		t.Error(err)
	}
	b = newBench(t)
	b.reg.add(t, "", here, "base", "amd")
	b.reg.add(t, "", arm, "base", "arm")
	b.reg.docs[note.Digest] = manifest.Document{}
	b.reg.index(t, "latest", descOf(one, here), descOf(two, arm), note)
	if err := b.Pull(t.Context(), PullOptions{Ref: "x", AllPlatforms: true}, l.report); err != nil {
		t.Fatal(err)
	}
	if img, err := b.store.Get(t.Context(), "x"); err != nil || img.Config.Architecture != "amd64" || len(b.store.images) != 2 || b.store.indexes["docker.io/library/x:latest"].Digest != index.Digest {
		t.Error(img, err, len(b.store.images), b.store.indexes)
	}
	if !strings.Contains(strings.Join(l.got, "\n"), "Left out, an attestation or other artifact beside the images: ") || len(b.store.artifacts) != 0 {
		t.Error(l.got, b.store.artifacts)
	}
	// What is about an image comes with it; what is for another system does not, and does not spoil the rest.
	about := b.reg.add(t, "", manifest.Platform{}, "statement")
	windows := descOf(b.reg.add(t, "", here, "windows"), manifest.Platform{OS: "windows", Arch: "amd64"})
	b.reg.index(t, "latest", descOf(one, here), descOf(two, arm), descOf(about, manifest.Platform{OS: "unknown", Arch: "unknown"}), windows)
	if err := b.Pull(t.Context(), PullOptions{Ref: "x", AllPlatforms: true}, l.report); err != nil || !slices.Equal(b.store.artifacts, []digest.Digest{about.Digest}) || len(b.store.images) != 2 {
		t.Error(err, b.store.artifacts, len(b.store.images))
	}
	if !strings.Contains(strings.Join(l.got, "\n"), "Left out, an image for windows/amd64") {
		t.Error(l.got)
	}
	l = lines{}
	b.reg.add(t, "mono", here, "mono")
	if err := b.Pull(t.Context(), PullOptions{Ref: "x:mono", Platform: "linux/arm64"}, l.report); err != nil || !l.has("WARNING: image with reference x:mono was found but its platform (linux/amd64) does not match the specified platform (linux/arm64)") {
		t.Error(err, l.got)
	}
}

// What a registry may send that is no image, or no sound one.
func TestPullRefuses(t *testing.T) {
	b := newBench(t)
	good := b.reg.add(t, "good", here, "base")
	change := func(tag string, edit func(*ocispec.Manifest)) {
		m := *good.Manifest
		m.Layers = slices.Clone(m.Layers)
		edit(&m)
		b.reg.put(t, tag, m)
	}
	change("foreign", func(m *ocispec.Manifest) { m.Layers[0].MediaType = manifest.DockerForeign })
	change("crypt", func(m *ocispec.Manifest) { m.Layers[0].MediaType += "+encrypted" })
	change("chart", func(m *ocispec.Manifest) { m.Config.MediaType = "application/vnd.cncf.helm.config.v1+json" })
	change("note", func(m *ocispec.Manifest) { m.Layers[0].MediaType = "application/vnd.in-toto+json" })
	change("wrong", func(m *ocispec.Manifest) { m.Layers[0].Digest = digest.FromString("other"); m.Layers[0].Size = 4 })
	b.reg.blobs[digest.FromString("other")] = []byte("evil")
	inner := b.reg.index(t, "", descOf(good, here))
	nested := b.reg.index(t, "nested", descOf(inner, here))
	b.reg.index(t, "deep", descOf(b.reg.index(t, "", descOf(nested, here)), here))
	lying := descOf(good, here)
	lying.Size++
	b.reg.index(t, "lying", lying)
	b.reg.index(t, "empty")
	for tag, want := range map[string]string{
		"foreign": "foreign layer", "crypt": "is encrypted", "chart": "is no image: unsupported media type application/vnd.cncf.helm.config.v1+json", "note": "unsupported media type application/vnd.in-toto+json",
		"wrong": "sent bytes that are not those it named", "deep": "lies in more than", "lying": "the index lists a manifest", "empty": "no matching manifest", "none": "manifest unknown",
	} {
		err := b.Pull(t.Context(), PullOptions{Ref: "x:" + tag}, func(Report) {})
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", tag, err)
		}
	}
	if len(b.store.images) > 0 || len(b.blobs.parts) > 0 {
		t.Errorf("left behind: %v, %v", b.store.images, b.blobs.parts)
	}
	if err := b.Pull(t.Context(), PullOptions{Ref: "x:nested"}, func(Report) {}); err != nil {
		t.Error(err)
	}
	for _, o := range []PullOptions{{Ref: "UP"}, {Ref: "x:1", AllTags: true}, {Ref: "x", Platform: "a/b/c/d"}, {Ref: "x", Platform: "arm64", AllPlatforms: true}} {
		if err := b.Pull(t.Context(), o, func(Report) {}); !errors.Is(err, errs.Invalid) {
			t.Errorf("%+v: %v", o, err)
		}
	}
}

// A bug that a registry's answer or a layer's bytes meet ends the pull, and neither the engine nor the pulls that come after it. It was so for builds; a pull ran without a wall.
func TestPullMeetsBug(t *testing.T) {
	b := newBench(t)
	b.reg.add(t, "latest", here, "base", "top")
	b.reg.bug = digest.FromString("top")
	var l lines
	err := b.Pull(t.Context(), PullOptions{Ref: "busybox"}, l.report)
	if err == nil || !strings.Contains(err.Error(), "bug of the engine") {
		t.Error("download:", err)
	}
	b.reg.bug = ""
	b.store.unpacking = func(int, io.Reader) { panic("oh") }
	if err := b.Pull(t.Context(), PullOptions{Ref: "busybox"}, l.report); err == nil || !strings.Contains(err.Error(), "bug of the engine") {
		t.Error("unpacking:", err)
	}
	b.store.unpacking = nil
	if err := b.Pull(t.Context(), PullOptions{Ref: "busybox"}, l.report); err != nil {
		t.Error("the next one:", err)
	}
	b.reg.bug = digest.FromString("pushed")
	if err := b.Push(t.Context(), PushOptions{Ref: "busybox"}, l.report); err == nil || !strings.Contains(err.Error(), "bug of the engine") {
		t.Error("push:", err)
	}
}
