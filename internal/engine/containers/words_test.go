package containers

import (
	"errors"
	"path"
	"reflect"
	"testing"
	"time"

	"corten.dev/corten/internal/container"
	"corten.dev/corten/internal/engine/hostspec"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/monitor"
)

// The words of the refusals are dockerd's.
func TestParseBind(t *testing.T) {
	for spec, want := range map[string]container.Mount{
		"/a": {Type: "volume", Target: "/a", Mode: "z", RW: true}, "/a:/b": {Type: "bind", Source: "/a", Target: "/b", RW: true},
		"/a:/b:rw,z,rshared": {Type: "bind", Source: "/a", Target: "/b", Mode: "rw,z,rshared", RW: true, Propagation: "rshared", Relabel: "z"},
		"vol:/b":             {Type: "volume", Name: "vol", Target: "/b", Mode: "z", RW: true}, "/a:/b/../c": {Type: "bind", Source: "/a", Target: "/c", RW: true},
		"vol:/b:ro,nocopy,U": {Type: "volume", Name: "vol", Target: "/b", Mode: "ro,nocopy,U"},
	} {
		got, err := ParseBind(spec)
		got.Request, got.Anonymous = container.MountRequest{}, false
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %+v %v", spec, got, err)
		}
	}
	for spec, want := range map[string]string{
		"": "invalid volume specification: ''", "a:b:c:d": "invalid volume specification: 'a:b:c:d'", ":/b": "invalid volume specification: ':/b'",
		"/a:ro": "invalid volume specification: '/a:ro'", "/a:/b:nope": "invalid mode: nope", "/a:/b:ro,rw": "invalid mode: ro,rw",
		"/a:/":         `invalid volume specification: '/a:/': invalid mount config for type "bind": invalid specification: destination can't be '/'`,
		"v1:b":         `invalid volume specification: 'v1:b': invalid mount config for type "volume": invalid mount path: 'b' mount path must be absolute`,
		"v1:/b:rslave": `invalid volume specification: 'v1:/b:rslave': invalid mount config for type "volume": field BindOptions must not be specified`,
		"/a:/b:nocopy": `invalid volume specification: '/a:/b:nocopy': invalid mount config for type "bind": field VolumeOptions must not be specified`,
		"/a:/b\x00":    `invalid volume specification: '/a:/b\0'`, "/a:/b:idmap=x": `invalid idmap "x": want uids=FS-MOUNT-LENGTH and gids=FS-MOUNT-LENGTH, split by ";"`,
	} {
		if got, err := ParseBind(spec); !errors.Is(err, errs.Invalid) || err.Error() != want {
			t.Errorf("%q: %+v %v", spec, got, err)
		}
	}
}

func FuzzParseBind(f *testing.F) {
	for _, s := range []string{"/a:/b", "/a:/b:ro", "name:/x:nocopy", "/only", "a:b:c:d", "/a:/b:ro,rshared,z", ":/x", "/a/../b:/c/", "/a:/b:U,idmap=uids=0-1000-1#1-1-5;gids=0-5-1", "/a:/b:idmap"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		mnt, err := ParseBind(s)
		if err != nil {
			if !errors.Is(err, errs.Invalid) {
				t.Errorf("%q: %v is of no kind", s, err)
			}
			return
		}
		if !path.IsAbs(mnt.Target) || mnt.Target == "/" || path.Clean(mnt.Target) != mnt.Target {
			t.Errorf("%q: target %q", s, mnt.Target)
		}
		if mnt.Type == "bind" && !path.IsAbs(mnt.Source) || mnt.Type == "volume" && (mnt.Source != "" || mnt.Anonymous != (mnt.Name == "")) {
			t.Errorf("%q: %+v", s, mnt)
		}
	})
}

func FuzzWords(f *testing.F) {
	for _, s := range []string{"c 1:3 rwm", "a *:* m", "seccomp=unconfined", "label=disable", "ctrl-p,ctrl-q", "a,ctrl-@", "-o pid,comm", "aux", "0-3,5", "10.5", "2024-01-02", "h:1.2.3.4", "host=[::1]", "10m"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if dev, err := hostspec.ParseDeviceRule(s); err == nil && (dev.Access == "" || dev.Major == nil || dev.Minor == nil) {
			t.Errorf("rule %q: %+v", s, dev)
		}
		if keys, err := parseDetachKeys(s); err == nil && len(keys) == 0 {
			t.Errorf("keys %q are none", s)
		}
		if cols, err := psColumns([]string{s}); err == nil {
			for _, col := range cols {
				if col.show == nil {
					t.Errorf("ps %q: a column without content", s)
				}
			}
		}
		if name, addr, ok := cutHost(s); ok && (name == "" || addr == "") {
			t.Errorf("host %q: %q %q", s, name, addr)
		}
		_, _ = hostspec.ParseSecurityOpt([]string{s})
		_, _ = parseSet(s)
		_, _ = Moment(s, time.Now())
		_, _ = portFilter([]string{s})
	})
}

func TestBackoff(t *testing.T) {
	asked, err := container.ReadAnnotations(nil)
	if err != nil {
		t.Fatal(err)
	}
	var got []time.Duration
	for n := range 12 {
		got = append(got, asked.Backoff(n))
	}
	if got[0] != 100*time.Millisecond || got[1] != 200*time.Millisecond || got[9] != 51200*time.Millisecond || got[10] != time.Minute || got[11] != time.Minute {
		t.Error(got)
	}
}

// The policy as a table: what happens after an exit.
func TestRestarts(t *testing.T) {
	s := &Service{}
	s.ctx, s.cancel = t.Context(), func() {}
	start := time.Now()
	for _, c := range []struct {
		policy  string
		max     int
		count   int
		code    int
		stopped bool
		want    bool
	}{
		{"no", 0, 0, 1, false, false}, {"always", 0, 9, 0, false, true}, {"always", 0, 0, 0, true, false}, {"unless-stopped", 0, 0, 0, false, true},
		{"on-failure", 0, 99, 1, false, true}, {"on-failure", 0, 0, 0, false, false}, {"on-failure", 3, 2, 1, false, true}, {"on-failure", 3, 3, 1, false, false},
	} {
		rec := container.Record{RestartCount: c.count, StoppedByUser: c.stopped, State: container.State{StartedAt: start}}
		rec.Host.Restart = container.RestartPolicy{Name: c.policy, MaxRetries: c.max}
		ctr := newLive(rec)
		ctr.failures = 5
		if got := s.restarts(ctr, &rec, monitor.Exit{Code: c.code, At: start.Add(time.Second)}); got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
		if s.restarts(ctr, &rec, monitor.Exit{Code: c.code, At: start.Add(11 * time.Second)}); !c.stopped && ctr.failures != 0 {
			t.Errorf("%+v: a run of 11 seconds did not start the back-off anew", c)
		}
	}
}

func TestMadeUpNames(t *testing.T) {
	for try := range 10 {
		if name := madeUpName(try); !nameRule.MatchString(name) {
			t.Error(name)
		}
	}
}

// `stop -t 9999999999` killed at once: so many seconds are a negative duration.
func TestPatience(t *testing.T) {
	for seconds, want := range map[int]time.Duration{0: 0, 10: 10 * time.Second, -1: -1, 9_999_999_999: -1, 9_000_000_000: 9_000_000_000 * time.Second} {
		d, bounded := patienceOf(seconds)
		if !bounded {
			d = -1
		}
		if d != want {
			t.Errorf("%d s: %v, want %v", seconds, d, want)
		}
	}
}
