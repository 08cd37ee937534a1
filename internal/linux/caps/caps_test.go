package caps

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"corten.dev/corten/internal/errs"
)

func ExampleResolve() {
	set, err := Resolve([]string{"net_admin"}, []string{"ALL"}, false)
	fmt.Println(set, err)
	// Output: [CAP_NET_ADMIN] <nil>
}

func TestResolve(t *testing.T) {
	all := All()
	less := func(list []string, names ...string) []string {
		return slices.DeleteFunc(slices.Clone(list), func(s string) bool { return slices.Contains(names, s) })
	}
	for _, c := range []struct {
		add, drop  []string
		privileged bool
		want       []string
	}{
		{nil, nil, false, Default()},
		{nil, nil, true, all},
		{[]string{"sys_admin"}, nil, false, append(Default(), "CAP_SYS_ADMIN")},
		{[]string{"CAP_SYS_ADMIN", "Sys_Admin", "CHOWN"}, nil, false, append(Default(), "CAP_SYS_ADMIN")},
		{nil, []string{"cap_chown", "KILL"}, false, less(Default(), "CAP_CHOWN", "CAP_KILL")},
		{[]string{"all"}, nil, false, all},
		{[]string{"ALL"}, []string{"MKNOD"}, false, less(all, "CAP_MKNOD")},
		{[]string{"net_raw"}, []string{"ALL"}, false, []string{"CAP_NET_RAW"}},
		{nil, []string{"ALL"}, false, nil},
		{[]string{"CHOWN"}, []string{"CHOWN"}, false, append(less(Default(), "CAP_CHOWN"), "CAP_CHOWN")},
	} {
		got, err := Resolve(c.add, c.drop, c.privileged)
		if err != nil || !slices.Equal(got, c.want) {
			t.Errorf("add %v drop %v privileged %v: %v, %v\nwant %v", c.add, c.drop, c.privileged, got, err, c.want)
		}
	}
	for _, bad := range []string{"", "CAP_", "CAP_ALL", "SYS_ADMINISTRATOR", "CAP_CAP_CHOWN"} {
		if _, err := Resolve([]string{bad}, nil, false); !errors.Is(err, errs.Invalid) {
			t.Errorf("add %q: %v", bad, err)
		}
		if _, err := Resolve(nil, []string{bad}, false); !errors.Is(err, errs.Invalid) {
			t.Errorf("drop %q: %v", bad, err)
		}
	}
}

func TestParse(t *testing.T) {
	mask, unknown, err := Parse([]string{"CAP_CHOWN", "cap_setfcap", "CAP_OF_TOMORROW"})
	if err != nil || mask != 1|1<<31 || !slices.Equal(unknown, []string{"CAP_OF_TOMORROW"}) {
		t.Errorf("mask %x, unknown %v, %v", mask, unknown, err)
	}
	if got := Names(mask); !slices.Equal(got, []string{"CAP_CHOWN", "CAP_SETFCAP"}) {
		t.Errorf("names %v", got)
	}
	for _, bad := range []string{"", "CHOWN", "CAP_", "CAP_A B", "CAP_\x00"} {
		if _, _, err := Parse([]string{bad}); !errors.Is(err, errs.Invalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestTable(t *testing.T) {
	if len(Default()) != 14 {
		t.Errorf("the default has %d", len(Default()))
	}
	for i, name := range map[int]string{0: "CAP_CHOWN", 21: "CAP_SYS_ADMIN", 27: "CAP_MKNOD", 40: "CAP_CHECKPOINT_RESTORE", 41: "", -1: ""} {
		if got := Name(i); got != name {
			t.Errorf("%d is %q, want %q", i, got, name)
		}
	}
	// The header of this machine, where there is one, has the same numbers.
	src, err := os.ReadFile("/usr/include/linux/capability.h")
	if err != nil {
		t.Skip("needs the kernel's headers")
	}
	for _, line := range strings.Split(string(src), "\n") {
		var name string
		var n int
		if c, _ := fmt.Sscanf(line, "#define %s %d", &name, &n); c == 2 && strings.HasPrefix(name, "CAP_") && Name(n) != name {
			t.Errorf("%s is %d, the table says %q", name, n, Name(n))
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("CAP_CHOWN", "all")
	f.Fuzz(func(t *testing.T, a, b string) {
		if mask, unknown, err := Parse([]string{a, b}); err == nil && mask == 0 && len(unknown) == 0 {
			t.Errorf("%q and %q vanished", a, b)
		}
		if set, err := Resolve([]string{a}, []string{b}, false); err == nil {
			if mask, unknown, err := Parse(set); err != nil || len(unknown) > 0 || len(Names(mask)) != len(set) {
				t.Errorf("add %q drop %q: %v", a, b, set)
			}
		}
	})
}
