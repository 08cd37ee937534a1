package hostspec

import (
	"errors"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"corten.dev/corten/internal/errs"
)

// shows tells how an id of the file system appears on the mount.
func shows(list []specs.LinuxIDMapping, id uint32) (uint32, bool) {
	for _, r := range list {
		if id >= r.ContainerID && uint64(id) < uint64(r.ContainerID)+uint64(r.Size) {
			return r.HostID + id - r.ContainerID, true
		}
	}
	return 0, false
}

func TestParseIDMap(t *testing.T) {
	m, err := ParseIDMap("uids=0-1000-1#1-1-999;gids=5-50-10")
	if err != nil {
		t.Fatal(err)
	}
	if id, ok := shows(m.UIDs, 0); !ok || id != 1000 {
		t.Error(id, ok)
	}
	if id, ok := shows(m.GIDs, 14); !ok || id != 59 {
		t.Error(id, ok)
	}
	if m, err = ParseIDMap("uids=0-7-1"); err != nil || len(m.GIDs) != 1 || m.GIDs[0] != m.UIDs[0] {
		t.Errorf("gids as uids: %+v, %v", m, err)
	}
	for _, bad := range []string{"uids=", "uids=1-2", "uids=a-1-1", "uids=0-0-0", "uids=4294967295-0-1", "uids=0-0-4294967295#1-1-1", "ids=0-0-1", "uids=@0-1-1", "uids=0-1-1;uids=0-1-1", "uids=0-5-2#2-6-1", "x"} {
		if m, err := ParseIDMap(bad); !errors.Is(err, errs.Invalid) {
			t.Errorf("%q: %+v, %v", bad, m, err)
		}
	}
}

// The owner and the user change places, nobody else is touched, and no two become one.
func TestOwnerMapping(t *testing.T) {
	for _, c := range [][2]uint32{{0, 1000}, {1000, 0}, {5, 6}, {0, 4294967294}, {4294967294, 0}, {1000, 1000}} {
		m := OwnerMapping(c[0], 1, c[1], 2)
		if id, ok := shows(m.UIDs, c[0]); !ok || id != c[1] {
			t.Errorf("%v: the owner appears as %d, %t", c, id, ok)
		}
		seen := map[uint32]uint32{}
		for _, fs := range []uint32{0, 1, 4, 5, 6, 7, 999, 1000, 1001, 65534, 4294967293, 4294967294} {
			id, ok := shows(m.UIDs, fs)
			if !ok {
				if fs != c[1] {
					t.Errorf("%v: %d is mapped to nobody", c, fs)
				}
				continue
			}
			if other, taken := seen[id]; taken {
				t.Errorf("%v: %d and %d both appear as %d", c, other, fs, id)
			}
			if seen[id] = fs; fs != c[0] && id != fs {
				t.Errorf("%v: %d appears as %d", c, fs, id)
			}
		}
	}
	if m := OwnerMapping(3, 4, 3, 4); m.UIDs != nil || m.GIDs != nil {
		t.Errorf("nothing to map: %+v", m)
	}
}

// What is accepted can be given to the kernel: no empty, overflowing or overlapping range.
func FuzzIDMap(f *testing.F) {
	for _, s := range []string{"uids=0-1000-1;gids=0-5-1", "uids=0-0-4294967294", "gids=1-2-3#9-9-9", "auto", "", "uids=@1-1-1", "uids=--"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		m, err := ParseIDMap(s)
		if err != nil {
			if !errors.Is(err, errs.Invalid) {
				t.Errorf("%q: %v is of no kind", s, err)
			}
			return
		}
		for _, list := range [][]specs.LinuxIDMapping{m.UIDs, m.GIDs} {
			for i, a := range list {
				if a.Size == 0 || a.ContainerID+a.Size < a.ContainerID || a.HostID+a.Size < a.HostID {
					t.Errorf("%q: %+v", s, a)
				}
				for _, b := range list[:i] {
					if a.ContainerID < b.ContainerID+b.Size && b.ContainerID < a.ContainerID+a.Size {
						t.Errorf("%q: %+v and %+v", s, a, b)
					}
				}
			}
		}
	})
}
