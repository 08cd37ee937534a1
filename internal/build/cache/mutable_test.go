package cache

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/filter"
	"corten.dev/corten/internal/record"
	"corten.dev/corten/internal/snapshot"
)

func TestMount(t *testing.T) {
	h := open(t, t.TempDir())
	base := h.step(t, "base", 10)
	write := func(key, name string) {
		t.Helper()
		m, err := h.snaps.Mount(ctx, key)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(os.WriteFile("/proc/self/fd/"+strconv.Itoa(int(m.Root.Fd()))+"/"+name, []byte("12345"), 0o644), m.Close()); err != nil {
			t.Fatal(err)
		}
	}
	take := func(id string, chain snapshot.ChainID, sharing pb.CacheSharingOpt) (string, func()) {
		t.Helper()
		key, release, err := h.Acquire(ctx, id, chain, sharing)
		if err != nil {
			t.Fatal(err)
		}
		return key, release
	}
	one, free1 := take("go", "", pb.CacheSharingOpt_SHARED)
	two, free2 := take("go", "", pb.CacheSharingOpt_SHARED)
	other, free3 := take("go", base.Outputs[0], pb.CacheSharingOpt_SHARED)
	alone, free4 := take("go", "", pb.CacheSharingOpt_PRIVATE)
	if one != two || one == other || alone == one || alone == other {
		t.Fatal(one, two, other, alone)
	}
	write(one, "file")
	// A locked one waits for all who have it.
	short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	if _, _, err := h.Acquire(short, "go", "", pb.CacheSharingOpt_LOCKED); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	cancel()
	got := make(chan string)
	go func() {
		key, release, err := h.Acquire(ctx, "go", "", pb.CacheSharingOpt_LOCKED)
		if err != nil {
			t.Error(err)
		}
		got <- key
		<-got
		release()
	}()
	free1()
	free1()
	select {
	case <-got:
		t.Fatal("locked and shared at a time")
	case <-time.After(20 * time.Millisecond):
	}
	free2()
	if key := <-got; key != one {
		t.Error("the locked one is another:", key)
	}
	got <- ""
	free3()
	free4()
	if key, free := take("go", "", pb.CacheSharingOpt_PRIVATE); key != one && key != alone {
		t.Error("a free one was not used again")
	} else {
		free()
	}
	list, err := h.Usage(ctx, filter.Args{"mutable": {"true"}})
	if err != nil || len(list) != 3 || list[0].Kind != KindMount || list[0].Size != 5 || !list[0].Mutable || !strings.Contains(list[0].Description, "go") {
		t.Fatal(list, err)
	}
	if _, _, err := h.Acquire(ctx, "", "", pb.CacheSharingOpt_SHARED); !errors.Is(err, errs.Invalid) {
		t.Error(err)
	}
	if _, _, err := h.Acquire(ctx, "x", digest.FromString("none"), pb.CacheSharingOpt_SHARED); !errors.Is(err, errs.NotFound) {
		t.Error(err)
	}
	// Flushed, it outlives the host; in use, it does not.
	_, busy := take("busy", "", pb.CacheSharingOpt_SHARED)
	path, dir, err := h.Dir(ctx, "source.local", "ctx")
	if err != nil || os.WriteFile(filepath.Join(path, "f"), []byte("123"), 0o600) != nil {
		t.Fatal(err)
	}
	if _, _, err := h.Dir(ctx, KindMount, "x"); !errors.Is(err, errs.Invalid) {
		t.Error(err)
	}
	dir()
	h = open(t, h.reopen(t))
	if list, err = h.Usage(ctx, filter.Args{"mutable": {"true"}}); err != nil || len(list) != 5 || list[0].Size != 5 || list[4].Size != 3 {
		t.Fatal(list, err)
	}
	busy()
}

// A cache mount that was used when the host went down begins anew; one that was flushed is what it was.
func TestMountAfterCrash(t *testing.T) {
	h := open(t, t.TempDir())
	flushed, release, err := h.Acquire(ctx, "flushed", "", pb.CacheSharingOpt_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	release()
	if err := h.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	used, _, err := h.Acquire(ctx, "used", "", pb.CacheSharingOpt_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	dir, _, err := h.Dir(ctx, "source.http", "used")
	if err != nil {
		t.Fatal(err)
	}
	h = open(t, h.reopen(t)) // a clean end does not flush what is in use
	if len(h.muts) != 3 {
		t.Errorf("%d mutables after a start in the same boot", len(h.muts))
	}
	journal, all, err := record.OpenJournal[mutableRecord](filepath.Join(h.root, "cache/mutables"), h.log)
	if err != nil {
		t.Fatal(err)
	}
	for id, rec := range all {
		if rec.Boot != "" {
			rec.Boot = "another"
		}
		if err := journal.Put(id, rec); err != nil {
			t.Fatal(err)
		}
	}
	if err := journal.Close(); err != nil {
		t.Fatal(err)
	}
	h = open(t, h.root)
	if len(h.muts) != 1 {
		t.Errorf("%d mutables after a crash", len(h.muts))
	}
	if key, release, err := h.Acquire(ctx, "flushed", "", pb.CacheSharingOpt_SHARED); err != nil || key != flushed {
		t.Error("the flushed one is another", err)
	} else {
		release()
	}
	if _, err := h.snaps.Mount(ctx, used); !errors.Is(err, errs.NotFound) {
		t.Error("the tree that was in use is still there", err)
	}
	h.reopen(t)
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Error("the directory that was in use is still there", err)
	}
}

func TestPruneMounts(t *testing.T) {
	h := open(t, t.TempDir())
	base := h.step(t, "base", 10)
	key, release, err := h.Acquire(ctx, "npm", base.Outputs[0], pb.CacheSharingOpt_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	_, freeDir, err := h.Dir(ctx, "source.git.checkout", "repo")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.Prune(ctx, PruneOptions{All: true}, nil); err != nil {
		t.Fatal(err)
	}
	if m, err := h.snaps.Mount(ctx, key); err != nil {
		t.Error("a cache mount went while it was used", err)
	} else {
		m.Close()
	}
	release()
	freeDir()
	var gone []string
	if _, err := h.Prune(ctx, PruneOptions{Filters: Rules(1e12)[0].Filters}, func(u Usage) { gone = append(gone, u.Kind) }); err != nil || len(gone) != 2 {
		t.Error(gone, err)
	}
	if _, err := h.snaps.Mount(ctx, key); !errors.Is(err, errs.NotFound) {
		t.Error(err)
	}
	if left, err := h.snaps.Layers(ctx); err != nil || len(left) > 0 {
		t.Error("the layers below a cache mount stay", left, err)
	}
	h.reopen(t)
	if left, err := os.ReadDir(filepath.Join(h.root, "cache/dirs")); err != nil || len(left) > 0 {
		t.Error(left, err)
	}
}
