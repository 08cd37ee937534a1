package network

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"corten.dev/corten/internal/linux/mount"
	"corten.dev/corten/internal/linux/ns"
	"golang.org/x/sys/unix"
)

// A full bridge (or subnet) made the filling of the pool complain every five seconds, forever. It is told once, and when there is room again the pool is filled without
// anybody's help.
func TestPoolOnAFullNetworkIsQuietAndHeals(t *testing.T) {
	var mu sync.Mutex
	var said bytes.Buffer
	w := newWorld(t, func(o *Options) {
		o.PoolSize, o.PoolDelay = 4, time.Millisecond
		o.BIP = netip.MustParsePrefix("10.77.5.1/29") // five containers
		o.Logger = slog.New(slog.NewTextHandler(lockedWriter{&mu, &said}, &slog.HandlerOptions{Level: slog.LevelDebug}))
	})
	check(t, w.Settle(bg))
	count := func(part string) int {
		mu.Lock()
		defer mu.Unlock()
		n := 0
		for line := range strings.Lines(said.String()) {
			if strings.Contains(line, part) && strings.Contains(line, "no ready network namespaces") {
				n++
			}
		}
		return n
	}
	ready := func() int {
		w.mu.Lock()
		defer w.mu.Unlock()
		return len(w.pool.bridge)
	}
	for i := range 5 {
		w.join(t, JoinRequest{Owner: fmt.Sprint("c", i)})
	}
	_, err := w.Join(bg, JoinRequest{Owner: "more"})
	if err == nil || !strings.Contains(err.Error(), "no available IPv4 addresses on this network's address pools") {
		t.Errorf("a sixth: %v", err)
	}
	until(t, "several tries", func() bool { w.pool.wake(); return count("level=") >= 4 })
	if n := count("level=WARN"); n != 1 {
		t.Errorf("told %d times", n)
	}
	check(t, w.Leave(bg, "c0"))
	w.reap.force(netip.Addr{}) // the test holds its namespace
	until(t, "ready again", func() bool { return ready() == 1 })
	if n := count("level=WARN"); n != 1 {
		t.Errorf("told %d times in the end", n)
	}
}

type lockedWriter struct {
	mu *sync.Mutex
	w  *bytes.Buffer
}

func (l lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

// until waits for what must come.
func until(tb testing.TB, what string, ok func() bool) {
	tb.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			tb.Fatalf("%s: not within %v", what, patience)
		}
	}
}

// Each start compared its sysfs with those of all containers that run. A ready namespace comes with one, and what is mounted later is the same file system.
func TestReadyNamespacesHaveTheirSysfs(t *testing.T) {
	w := newWorld(t, func(o *Options) { o.PoolSize, o.PoolDelay = 2, time.Millisecond })
	check(t, w.Settle(bg))
	for name, req := range map[string]JoinRequest{
		"default bridge":   {Owner: "a"},
		"none":             {Owner: "b", Endpoints: []EndpointRequest{{Network: nameNone}}},
		"bare, made later": {Owner: "c", Endpoints: []EndpointRequest{{Network: nameBridge, MAC: "02:42:0a:00:00:07"}}},
	} {
		until(t, "ready", func() bool {
			w.mu.Lock()
			defer w.mu.Unlock()
			return len(w.pool.bridge) == 2 && len(w.pool.bare) == 1
		})
		sb := w.join(t, req)
		if sb.Sysfs == nil {
			t.Errorf("%s: no sysfs", name)
			continue
		}
		var kept, again unix.Stat_t
		check(t, unix.Fstat(int(sb.Sysfs.Fd()), &kept))
		check(t, ns.InNet(sb.NS, func() error {
			f, err := mount.FS("sysfs", "sysfs", mount.Options{})
			if err != nil {
				return err
			}
			defer f.Close()
			return unix.Fstat(int(f.Fd()), &again)
		}))
		if kept.Dev != again.Dev {
			t.Errorf("%s: another sysfs", name)
		}
	}
}
