package wire

import "testing"

func TestExitRecord(t *testing.T) {
	want := Message{Code: 137, Signal: 9, Time: -1732236787123456789, Exit: OOMKilled}
	b := AppendExit(nil, &want)
	got, ok := ParseExit(b)
	if !ok || got.Code != want.Code || got.Signal != want.Signal || got.Time != want.Time || got.Exit != want.Exit {
		t.Fatalf("%q: %+v %v", b, got, ok)
	}
	for i := range b {
		if _, ok := ParseExit(b[:i]); ok {
			t.Fatalf("torn at %d and taken for whole", i)
		}
	}
}

func TestOOMKills(t *testing.T) {
	for text, want := range map[string]int64{
		"oom_kill_disable 0\nunder_oom 0\noom_kill 3\n":               3,
		"low 0\nhigh 0\nmax 9\noom 2\noom_kill 1\noom_group_kill 0\n": 1,
		"":                                 -1,
		"oom_kill":                         -1,
		"oom_kill x\n":                     -1,
		"no_oom_kill 4\n":                  -1,
		"oom_kill 99999999999999999999999": -1,
	} {
		if got := OOMKills([]byte(text)); got != want {
			t.Errorf("%q: %d, want %d", text, got, want)
		}
	}
}

func FuzzParseExit(f *testing.F) {
	f.Add(AppendExit(nil, &Message{Code: 1, Time: 5}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if m, ok := ParseExit(b); ok {
			if again, ok := ParseExit(AppendExit(nil, &m)); !ok || again.Code != m.Code || again.Time != m.Time {
				t.Fatalf("%q", b)
			}
		}
		OOMKills(b)
	})
}
