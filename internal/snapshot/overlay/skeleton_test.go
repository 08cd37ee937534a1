package overlay

import (
	"context"
	"os"
	"strconv"
	"testing"

	"corten.dev/corten/internal/snapshot"
)

// What a container is mounted over need not be made in its tree: it is there, and it is no change.
func TestSkeleton(t *testing.T) {
	if err := Supported(t.TempDir()); err != nil {
		t.Skip("needs overlay mounts: ", err)
	}
	s, err := New(Options{Root: t.TempDir() + "/store", Skeletons: map[string][]string{"": {"etc/", "etc/hosts", "proc/"}, snapshot.StepSkeleton: {"etc/"}}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ctx := context.Background()
	if err := s.Prepare(ctx, "tree", "", snapshot.Options{}); err != nil {
		t.Fatal(err)
	}
	mounted, err := s.Mount(ctx, "tree")
	if err != nil {
		t.Fatal(err)
	}
	root := "/proc/self/fd/" + strconv.Itoa(int(mounted.Root.Fd()))
	for _, name := range []string{"/etc/hosts", "/proc"} {
		if _, err := os.Stat(root + name); err != nil {
			t.Error(err)
		}
	}
	if changes, err := s.Changes(ctx, "tree"); err != nil || len(changes) > 0 {
		t.Errorf("changes %v, %v", changes, err)
	}
	if err := mounted.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(ctx, "tree"); err != nil {
		t.Fatal(err)
	}
}

// A cache mount of a build showed dev, etc, proc and sys beside its files: those are for roots of containers, and for them only; over restarts too.
func TestBareTree(t *testing.T) {
	if err := Supported(t.TempDir()); err != nil {
		t.Skip("needs overlay mounts: ", err)
	}
	opts := Options{Root: t.TempDir() + "/store", Skeletons: map[string][]string{"": {"etc/", "proc/"}}}
	ctx := context.Background()
	for again := range 2 {
		s, err := New(opts)
		if err != nil {
			t.Fatal(err)
		}
		if again == 0 {
			if err := s.Prepare(ctx, "tree", "", snapshot.Options{Bare: true}); err != nil {
				t.Fatal(err)
			}
		}
		mounted, err := s.Mount(ctx, "tree")
		if err != nil {
			t.Fatal(err)
		}
		names, err := os.ReadDir("/proc/self/fd/" + strconv.Itoa(int(mounted.Root.Fd())))
		if err != nil || len(names) > 0 {
			t.Errorf("%v %v", names, err)
		}
		if err := mounted.Close(); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// A step of a build found /.dockerenv: roots of steps stand on a skeleton of their own, over restarts too, and a name that the driver has no skeleton for is none.
func TestSkeletonsByName(t *testing.T) {
	if err := Supported(t.TempDir()); err != nil {
		t.Skip("needs overlay mounts: ", err)
	}
	opts := Options{Root: t.TempDir() + "/store", Skeletons: map[string][]string{"": {"mtab -> /proc/mounts", "etc/"}, snapshot.StepSkeleton: {"etc/", "etc/hosts"}}}
	ctx := context.Background()
	want := map[string]int{"": 2, snapshot.StepSkeleton: 1, "none": 0}
	for again := range 2 {
		s, err := New(opts)
		if err != nil {
			t.Fatal(err)
		}
		for name, entries := range want {
			if again == 0 {
				if err := s.Prepare(ctx, "tree "+name, "", snapshot.Options{Skeleton: name}); err != nil {
					t.Fatal(err)
				}
			}
			mounted, err := s.Mount(ctx, "tree "+name)
			if err != nil {
				t.Fatal(err)
			}
			names, err := os.ReadDir("/proc/self/fd/" + strconv.Itoa(int(mounted.Root.Fd())))
			if err != nil || len(names) != entries {
				t.Errorf("%q shows %v %v", name, names, err)
			}
			if err := mounted.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
