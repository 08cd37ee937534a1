package hostspec

import "testing"

// A container that joined the processes of another had its level. When the first of the two was removed, the level counted as free: a new container could be given it, and then read the files of the one that was
// still there.
func TestLevelStaysWithItsLastUser(t *testing.T) {
	const one, joined, other = "system_u:system_r:container_t:s0:c1,c2", "system_u:system_r:special_t:s0:c1,c2", "system_u:system_r:container_t:s0:c3,c4"
	var l levels
	for _, label := range []string{one, other, joined, one} {
		l.takeLocked(label)
	}
	for i, give := range []struct {
		label string
		last  bool
	}{{one, false}, {joined, false}, {other, true}, {one, true}, {one, true}} {
		if last := l.giveLocked(give.label); last != give.last {
			t.Errorf("%d: %s given back: last %v, want %v", i, give.label, last, give.last)
		}
	}
	if len(l.used) != 0 {
		t.Errorf("left: %v", l.used)
	}
	l.takeLocked("unconfined") // a policy without levels
	if len(l.used) != 0 {
		t.Errorf("a label without a level was counted: %v", l.used)
	}
}
