package proof

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"corten.dev/corten/internal/enginetest"
)

// netVerbs makes, uses and removes networks until the engine dies, and knows what it was told: a network whose making was answered is there, one whose removal was answered is not,
// and of one that was under way either is right.
type netVerbs struct {
	e    *enginetest.Engine
	said map[string]string // name -> "there", "gone" or "under way"; likewise "on NAME"
	stop chan struct{}
	wg   sync.WaitGroup
}

func (n *netVerbs) verb(key, after string, args ...string) bool {
	select {
	case <-n.stop:
		return false
	default:
	}
	n.said[key] = "under way"
	if _, err := n.e.Try(args...); err != nil {
		return false
	}
	n.said[key] = after
	return true
}

func (n *netVerbs) begin(round int) {
	n.stop, n.said = make(chan struct{}), map[string]string{}
	n.wg.Go(func() {
		for i := 0; ; i++ {
			name := fmt.Sprintf("kill-%d-%d", round, i)
			ok := n.verb(name, "there", "network", "create", "--ipv6", name) &&
				n.verb("on "+name, "there", "network", "connect", name, "node") &&
				n.verb("on "+name, "gone", "network", "disconnect", name, "node") &&
				n.verb(name, "gone", "network", "rm", name)
			if !ok {
				return
			}
		}
	})
}

func (n *netVerbs) end() {
	close(n.stop)
	n.wg.Wait()
}

// The engine is killed in the middle of network create, connect, disconnect and rm. What it said is true afterwards, the kernel has what the engine shows and nothing else, and the
// container reaches the world as before.
func TestKillEngineInNetworkVerbs(t *testing.T) {
	e := enginetest.Start(t)
	e.Corten("run", "-d", "--name", "node", "-p", "127.0.0.1::7000", enginetest.Busybox, "sh", "-c", "while true; do echo pong | nc -l -p 7000; done")
	port := strings.TrimPrefix(strings.Fields(e.Corten("port", "node", "7000/tcp"))[0], "127.0.0.1:")
	n := &netVerbs{e: e}
	for round := range max(2, rounds(t)/2) {
		n.begin(round)
		time.Sleep(time.Duration(100+rand.IntN(400)) * time.Millisecond)
		e.Kill9()
		n.end()
		e.Up()
		n.check(t)
		if err := ping(port); err != nil {
			t.Errorf("the published port: %v", err)
		}
		if out := e.Corten("exec", "node", "ip", "route"); !strings.Contains(out, "default via") {
			t.Errorf("the way out is lost: %s", out)
		}
		for name := range n.said {
			if !strings.HasPrefix(name, "on ") {
				_, _ = e.Try("network", "disconnect", "-f", name, "node")
				_, _ = e.Try("network", "rm", "-f", name)
			}
		}
		if t.Failed() {
			t.Fatalf("in round %d\n%s", round, e.Log())
		}
	}
}

func (n *netVerbs) check(t *testing.T) {
	t.Helper()
	networks := strings.Fields(n.e.Corten("network", "ls", "-q", "--no-trunc", "--filter", "type=custom", "--format", "{{.Name}}"))
	on := strings.Fields(n.e.Corten("inspect", "-f", "{{range $name, $_ := .NetworkSettings.Networks}}{{$name}} {{end}}", "node"))
	for key, said := range n.said {
		list, name := networks, key
		if after, ok := strings.CutPrefix(key, "on "); ok {
			list, name = on, after
		}
		if there := slices.Contains(list, name); said == "there" && !there || said == "gone" && there {
			t.Errorf("%s was said to be %s; the engine shows %v and %v", key, said, networks, on)
		}
	}
	same := func() bool {
		return len(n.bridges()) == len(networks) && len(strings.Fields(n.e.Corten("exec", "node", "ls", "/sys/class/net"))) == len(on)+1
	}
	for end := time.Now().Add(time.Minute); !same() && time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
	}
	if !same() {
		t.Errorf("bridges %v, networks %v; in the container %s, on %v", n.bridges(), networks, n.e.Corten("exec", "node", "ls", "/sys/class/net"), on)
	}
}

// bridges are those that the engine made for networks of users.
func (n *netVerbs) bridges() (all []string) {
	aliases, _ := filepath.Glob("/sys/class/net/br-*/ifalias")
	for _, path := range aliases {
		if raw, err := os.ReadFile(path); err == nil && strings.TrimSpace(string(raw)) == "corten "+n.e.Table {
			all = append(all, path)
		}
	}
	return all
}
