package network

import (
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"
)

// nameServers are the processes that serve names on the tests' host.
func nameServers(tb testing.TB) (pids []int) {
	tb.Helper()
	own, err := os.Readlink("/proc/self/ns/net")
	check(tb, err)
	dirs, err := filepath.Glob("/proc/[0-9]*")
	check(tb, err)
	for _, dir := range dirs {
		raw, _ := os.ReadFile(dir + "/cmdline") // gone meanwhile: not ours
		if ns, err := os.Readlink(dir + "/ns/net"); err != nil || ns != own || !strings.Contains(string(raw), "\x00portproxy\x00names\x00") {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(dir))
		check(tb, err)
		pids = append(pids, pid)
	}
	return pids
}

func awaitServers(tb testing.TB, what string, ok func(pids []int) bool) []int {
	tb.Helper()
	pids := nameServers(tb)
	for end := time.Now().Add(patience); !ok(pids) && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		pids = nameServers(tb)
	}
	if !ok(pids) {
		tb.Errorf("%s: name servers %v", what, pids)
	}
	return pids
}

// A container that looked another one up while the engine was away waited in vain: the engine itself answered for names. "Running containers never notice
// that the engine restarted" needs somebody who stays.
func TestNamesWhileTheEngineIsAway(t *testing.T) {
	w := newWorld(t, func(o *Options) {
		o.ResolvConf = t.TempDir() + "/resolv.conf"
		check(t, os.WriteFile(o.ResolvConf, []byte("nameserver 203.0.113.2\n"), 0o644))
	})
	w.network(t, Network{Name: "blue"})
	answers(t, w.outside, "203.0.113.2:53", [4]byte{198, 51, 100, 7})
	reqA, reqB := JoinRequest{Owner: "a", Name: "a", Endpoints: on("blue")}, JoinRequest{Owner: "b", Name: "b", DNS: []string{"127.0.0.1"}, Endpoints: on("blue")}
	a, b := w.join(t, reqA), w.join(t, reqB)
	dead, err := w.Join(bg, JoinRequest{Owner: "dead", Name: "dead", Endpoints: on("blue")})
	check(t, err)
	answers(t, b.NS, "127.0.0.1:53", [4]byte{198, 51, 100, 9})
	pidA, pidB := process(t, a.NS), process(t, b.NS)
	ipB := b.Endpoints[0].IPv4.Addr().String()
	all := func(when string) {
		t.Helper()
		for _, network := range []string{"udp", "tcp"} {
			wantPrefix(t, when+": name, "+network, lookup(t, a.NS, network, "b", dnsmessage.TypeA), "Success "+ipB)
		}
		wantPrefix(t, when+": of outside", lookup(t, a.NS, "udp", strings.ReplaceAll(when, " ", "-")+".example.com", dnsmessage.TypeA), "Success 198.51.100.7")
		wantPrefix(t, when+": of the server in the container", lookup(t, b.NS, "udp", strings.ReplaceAll(when, " ", "-")+".example.com", dnsmessage.TypeA), "Success 198.51.100.9")
	}
	all("at first")
	before := awaitServers(t, "one for all", func(pids []int) bool { return len(pids) == 1 })
	w.crash(t)
	check(t, dead.NS.Close())
	all("engine away")

	w.open(t)
	check(t, w.Restore(bg, reqA, *a, pidA))
	all("half restored")
	check(t, w.Restore(bg, reqB, *b, pidB))
	check(t, w.Settle(bg))
	all("restored")
	wantPrefix(t, "name of a container that is gone", lookup(t, a.NS, "udp", "dead", dnsmessage.TypeA)[:7], "Success") // upstream knows every name here
	if got := lookup(t, a.NS, "udp", "dead", dnsmessage.TypeA); strings.Contains(got, dead.Endpoints[0].IPv4.Addr().String()) {
		t.Errorf("a container that is gone is still told: %q", got)
	}
	if after := nameServers(t); len(after) != 1 || len(before) != 1 || after[0] != before[0] {
		t.Errorf("the server was replaced without need: %v, %v", before, after)
	}
	check(t, w.Rename(bg, "b", "bb"))
	wantPrefix(t, "renamed", lookup(t, a.NS, "udp", "bb", dnsmessage.TypeA), "Success "+ipB)

	for _, pid := range nameServers(t) {
		check(t, unix.Kill(pid, unix.SIGKILL))
	}
	wantPrefix(t, "after the server was killed", lookup(t, a.NS, "udp", "bb", dnsmessage.TypeA), "Success "+ipB)
	check(t, w.Leave(bg, "a"))
	check(t, w.Leave(bg, "b"))
	w.crash(t) // an engine hangs up; nothing is left to do
	awaitServers(t, "in the end", func(pids []int) bool { return len(pids) == 0 })
	w.open(t)
	check(t, w.Settle(bg))
}

// An engine of another build brings its own server, and nobody's question is lost while that takes over.
func TestNameServerOfAnotherBuildIsReplaced(t *testing.T) {
	w := newWorld(t, nil)
	w.network(t, Network{Name: "blue"})
	req := JoinRequest{Owner: "a", Name: "a", Endpoints: on("blue")}
	a := w.join(t, req)
	pid := process(t, a.NS)
	before := awaitServers(t, "old one", func(pids []int) bool { return len(pids) == 1 })
	w.crash(t)
	raw, err := os.ReadFile("/proc/self/exe")
	check(t, err)
	other := filepath.Join(t.TempDir(), "other")
	check(t, os.WriteFile(other, raw, 0o755))
	w.opt.Names = []string{other, "portproxy", "names"}
	stop := make(chan struct{})
	var asking sync.WaitGroup
	asking.Go(func() {
		for {
			// As resolvers do, asked again when a question went down with the server that had taken it.
			answer := lookupWithin(t, a.NS, 2*time.Second, "udp", "a")
			for range 4 {
				if strings.HasPrefix(answer, "Success") {
					break
				}
				answer = lookupWithin(t, a.NS, 2*time.Second, "udp", "a")
			}
			wantPrefix(t, "meanwhile", answer, "Success "+a.Endpoints[0].IPv4.Addr().String())
			select {
			case <-stop:
				return
			default:
			}
		}
	})
	w.open(t)
	check(t, w.Restore(bg, req, *a, pid))
	check(t, w.Settle(bg))
	awaitServers(t, "new one", func(pids []int) bool { return len(pids) == 1 && len(before) == 1 && pids[0] != before[0] })
	wantPrefix(t, "from the new one", lookup(t, a.NS, "tcp", "a", dnsmessage.TypeA), "Success")
	close(stop)
	asking.Wait()
}

// answers has a name server in the namespace tell every question the same address; asked counts the questions.
func answers(tb testing.TB, ns *os.File, addr string, a [4]byte) (asked *atomic.Int32) {
	tb.Helper()
	asked = new(atomic.Int32)
	packets(tb, ns, "udp4", addr, func(q []byte, _ net.Addr) []byte {
		asked.Add(1)
		var m dnsmessage.Message
		if m.Unpack(q) != nil {
			return nil
		}
		m.Response, m.RecursionAvailable = true, true
		m.Answers = []dnsmessage.Resource{{Header: dnsmessage.ResourceHeader{Name: m.Questions[0].Name, Class: dnsmessage.ClassINET, TTL: 60}, Body: &dnsmessage.AResource{A: a}}}
		p, _ := m.Pack()
		return p
	})
	return asked
}

// Several containers with one alias are all named, and one that leaves is not named any more.
func TestOneAliasOfSeveral(t *testing.T) {
	w := newWorld(t, nil)
	w.network(t, Network{Name: "blue"})
	asker := w.join(t, JoinRequest{Owner: "asker", Name: "asker", Endpoints: on("blue")})
	want := []string{}
	for _, owner := range []string{"a", "b", "c"} {
		sb := w.join(t, JoinRequest{Owner: owner, Name: owner, Endpoints: []EndpointRequest{{Network: "blue", Aliases: []string{"web"}}}})
		want = append(want, sb.Endpoints[0].IPv4.Addr().String())
	}
	wantPrefix(t, "all by tcp", lookup(t, asker.NS, "tcp", "Web", dnsmessage.TypeA), "Success "+strings.Join(want, " "))
	check(t, w.Leave(bg, "b"))
	wantPrefix(t, "without b", lookup(t, asker.NS, "udp", "web", dnsmessage.TypeA), "Success "+want[0]+" "+want[2])
}
