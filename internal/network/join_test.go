package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

func TestPublishedPortsAnswerFromEverywhere(t *testing.T) {
	w := newWorld(t, nil)
	check(t, w.Settle(context.Background()))
	web := w.join(t, JoinRequest{Owner: "web", Name: "web", Ports: []Port{
		{Proto: "tcp", ContainerPort: 80, HostPort: 8080}, {Proto: "udp", ContainerPort: 80, HostPort: 8080},
		{Proto: "tcp", ContainerPort: 80, HostPort: 8081, HostIP: netip.MustParseAddr("127.0.0.1")},
		{Proto: "tcp", ContainerPort: 80, HostPort: 8082, HostIP: netip.MustParseAddr("203.0.113.1")},
	}})
	other := w.join(t, JoinRequest{Owner: "other", Name: "other"})
	serve(t, web.NS, "web", 80)
	serve(t, web.NS, "hidden", 81)
	ip, gw := web.Endpoints[0].IPv4.Addr(), web.Endpoints[0].Gateway4
	for _, proto := range []string{"tcp", "udp"} {
		wantPrefix(t, proto+" loopback", ask(t, nil, proto, "127.0.0.1:8080"), "web")
		wantPrefix(t, proto+" own address", ask(t, nil, proto, "203.0.113.1:8080"), "web")
		wantPrefix(t, proto+" outside", ask(t, w.outside, proto, "203.0.113.1:8080"), "web")
		wantPrefix(t, proto+" other container by address", ask(t, other.NS, proto, ip.String()+":80"), "web")
		wantPrefix(t, proto+" other container by gateway", ask(t, other.NS, proto, gw.String()+":8080"), "web")
		wantPrefix(t, proto+" other container by host", ask(t, other.NS, proto, "203.0.113.1:8080"), "web")
		wantPrefix(t, proto+" itself by host", ask(t, web.NS, proto, "203.0.113.1:8080"), "web")
	}
	wantPrefix(t, "bound to loopback", ask(t, nil, "tcp", "127.0.0.1:8081"), "web")
	wantPrefix(t, "bound to loopback, from outside", knock(t, w.outside, "tcp", "203.0.113.1:8081"), "!")
	wantPrefix(t, "bound to one address", ask(t, w.outside, "tcp", "203.0.113.1:8082"), "web")
	wantPrefix(t, "bound to one address, by loopback", knock(t, nil, "tcp", "127.0.0.1:8082"), "!")
	wantPrefix(t, "not published, routed from outside", knock(t, w.outside, "tcp", ip.String()+":81"), "!")
	wantPrefix(t, "published, routed from outside past the host port", knock(t, w.outside, "tcp", ip.String()+":80"), "!")
	if got := ask(t, w.outside, "tcp", "203.0.113.1:8080"); got != "web 203.0.113.2" {
		t.Errorf("the client's address is hidden: %q", got)
	}
	serve(t, w.outside, "outside", 9000)
	if got := ask(t, other.NS, "tcp", "203.0.113.2:9000"); got != "outside 203.0.113.1" {
		t.Errorf("way to the outside: %q", got)
	}
}

func TestLeaveGivesEverythingBack(t *testing.T) {
	w := newWorld(t, nil)
	check(t, w.Settle(context.Background()))
	ctx := context.Background()
	for i := range 5 {
		sb, err := w.Join(ctx, JoinRequest{Owner: "a", Name: "a", Ports: []Port{{Proto: "tcp", ContainerPort: 80, HostPort: 8080}}})
		check(t, err)
		serve(t, sb.NS, fmt.Sprint("a", i), 80)
		wantPrefix(t, "round", ask(t, nil, "tcp", "127.0.0.1:8080"), fmt.Sprint("a", i))
		check(t, sb.NS.Close())
		check(t, w.Leave(ctx, "a"))
	}
	check(t, w.Leave(ctx, "a"))
}

func TestParallelJoins(t *testing.T) {
	w := newWorld(t, nil)
	check(t, w.Settle(context.Background()))
	var wg sync.WaitGroup
	seen := sync.Map{}
	for i := range 24 {
		wg.Go(func() {
			sb, err := w.Join(context.Background(), JoinRequest{Owner: fmt.Sprint("c", i), Ports: []Port{{Proto: "tcp", ContainerPort: 80}}})
			if err != nil {
				t.Error(err)
				return
			}
			if other, twice := seen.LoadOrStore(sb.Endpoints[0].IPv4, i); twice {
				t.Errorf("%d and %d share an address", i, other)
			}
			check(t, sb.NS.Close())
			seen.Delete(sb.Endpoints[0].IPv4) // on a slow machine a later one may rightly get it
			check(t, w.Leave(context.Background(), fmt.Sprint("c", i)))
		})
	}
	wg.Wait()
}

func BenchmarkJoinLeave(b *testing.B) {
	for _, c := range []struct {
		name string
		req  JoinRequest
		size int
		wait time.Duration
	}{
		{"pool", JoinRequest{}, 4, 30 * time.Millisecond},
		{"nopool", JoinRequest{}, -1, 10 * time.Millisecond},
		{"burst", JoinRequest{}, 4, 0},
		{"pool+port", JoinRequest{Ports: []Port{{Proto: "tcp", ContainerPort: 80, HostPort: 8080}}}, 4, 30 * time.Millisecond},
		{"none", JoinRequest{Endpoints: []EndpointRequest{{Network: "none"}}}, 4, 30 * time.Millisecond},
	} {
		b.Run(c.name, func(b *testing.B) {
			w := newWorld(b, func(o *Options) { o.PoolSize = c.size })
			check(b, w.Settle(context.Background()))
			benchJoin(b, w, c.req, c.wait)
		})
	}
}

func benchJoin(b *testing.B, w *world, req JoinRequest, wait time.Duration) {
	ctx := context.Background()
	time.Sleep(100 * time.Millisecond)
	var join, leave time.Duration
	n := 0
	b.ResetTimer()
	for range b.N {
		req.Owner = fmt.Sprint("c", n)
		n++
		t0 := time.Now()
		sb, err := w.Join(ctx, req)
		check(b, err)
		t1 := time.Now()
		if sb.NS != nil {
			check(b, sb.NS.Close())
		}
		t2 := time.Now()
		check(b, w.Leave(ctx, req.Owner))
		join, leave = join+t1.Sub(t0), leave+time.Since(t2)
		time.Sleep(wait)
	}
	b.ReportMetric(float64(join.Microseconds())/float64(n), "µs/join")
	b.ReportMetric(float64(leave.Microseconds())/float64(n), "µs/leave")
}

// A thousand endpoints must not make the next one slow.
func BenchmarkJoinAmongMany(b *testing.B) {
	w := newWorld(b, nil)
	check(b, w.Settle(context.Background()))
	many := 900
	for i := range many {
		sb, err := w.Join(context.Background(), JoinRequest{Owner: fmt.Sprint("many", i)})
		check(b, err)
		defer sb.NS.Close()
	}
	b.Cleanup(func() {
		for i := range many {
			check(b, w.Leave(context.Background(), fmt.Sprint("many", i)))
		}
	})
	for _, wait := range []time.Duration{30 * time.Millisecond, 0} {
		b.Run(fmt.Sprint("wait", wait), func(b *testing.B) { benchJoin(b, w, JoinRequest{}, wait) })
	}
}

func BenchmarkUserDefined(b *testing.B) {
	w := newWorld(b, nil)
	check(b, w.Settle(context.Background()))
	_, err := w.Create(context.Background(), Network{Name: "blue"})
	check(b, err)
	b.Cleanup(func() { check(b, w.Remove(context.Background(), "blue")) })
	benchJoin(b, w, JoinRequest{Name: "x", Endpoints: []EndpointRequest{{Network: "blue"}}}, 5*time.Millisecond)
}

// Rows of starts as users make them: one after the other every 10 ms, and eight at a time.
func BenchmarkRows(b *testing.B) {
	for _, side := range []int{1, 8} {
		b.Run(fmt.Sprint(side, "AtATime"), func(b *testing.B) {
			w := newWorld(b, nil)
			check(b, w.Settle(context.Background()))
			time.Sleep(100 * time.Millisecond)
			var mu sync.Mutex
			var sum, worst time.Duration
			n := 0
			for range b.N {
				var wg sync.WaitGroup
				for range side {
					n++
					owner := fmt.Sprint("c", n)
					wg.Go(func() {
						t0 := time.Now()
						sb, err := w.Join(context.Background(), JoinRequest{Owner: owner})
						took := time.Since(t0)
						if err != nil {
							b.Error(err)
							return
						}
						time.Sleep(8 * time.Millisecond)
						_ = sb.NS.Close()
						if err := w.Leave(context.Background(), owner); err != nil {
							b.Error(err)
						}
						mu.Lock()
						sum, worst = sum+took, max(worst, took)
						mu.Unlock()
					})
				}
				wg.Wait()
			}
			b.ReportMetric(float64(sum.Microseconds())/float64(n), "µs/join")
			b.ReportMetric(float64(worst.Microseconds()), "µs/worst")
		})
	}
}

func TestNoDescriptorIsLeft(t *testing.T) {
	count := func() int {
		fds, err := os.ReadDir("/proc/self/fd")
		check(t, err)
		return len(fds)
	}
	r, p, err := os.Pipe() // the runtime's poller opens descriptors of its own with the first of these
	check(t, err)
	check(t, errors.Join(r.Close(), p.Close()))
	before := count()
	t.Run("world", func(t *testing.T) {
		w := newWorld(t, func(o *Options) { o.PortProxy = []string{"/proc/self/exe", "portproxy"} })
		check(t, w.Settle(bg))
		w.network(t, Network{Name: "blue"})
		for i, req := range []JoinRequest{
			{}, {Endpoints: on("blue")}, {Endpoints: on("none")}, {Endpoints: on("host")}, {Endpoints: on("blue", "bridge")},
			{Ports: []Port{{Proto: "tcp", ContainerPort: 80}, {Proto: "udp", ContainerPort: 80}}}, {DNS: []string{"127.0.0.1"}, Endpoints: on("blue")},
		} {
			req.Owner = fmt.Sprint("c", i)
			sb := w.join(t, req)
			if host := i == 3; host != (sb.NS == nil) {
				t.Errorf("%d: namespace %v", i, sb.NS)
			}
			other, err := w.Join(bg, JoinRequest{Owner: "fails", Endpoints: req.Endpoints, Ports: []Port{{Proto: "tcp", ContainerPort: 80, HostPort: 1, HostIP: netip.MustParseAddr("198.51.100.1")}}})
			if err == nil { // where there is nothing to publish
				if other.NS != nil {
					check(t, other.NS.Close())
				}
				check(t, w.Leave(bg, "fails"))
			}
		}
	})
	for end := time.Now().Add(patience); count() > before && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
	}
	if after := count(); after > before {
		fds, _ := filepath.Glob("/proc/self/fd/*")
		for i, fd := range fds {
			if to, err := os.Readlink(fd); err == nil {
				fds[i] += " " + to
			}
		}
		t.Errorf("%d descriptors before, %d after: %v", before, after, fds)
	}
}

// A udp sender that keeps its port, as name servers and games do, went on talking to the address of a container that was gone: the kernel remembers
// where a flow goes for minutes after the rule changed.
func TestUDPSenderFindsTheNextContainer(t *testing.T) {
	w := newWorld(t, nil)
	from, err := net.ListenPacket("udp4", "203.0.113.1:0")
	check(t, err)
	defer from.Close()
	to := &net.UDPAddr{IP: net.IPv4(203, 0, 113, 1), Port: 8098}
	for i := range 3 {
		owner := fmt.Sprint("c", i)
		sb, err := w.Join(bg, JoinRequest{Owner: owner, Name: owner, Ports: []Port{{Proto: "udp", ContainerPort: 80, HostPort: 8098}}})
		check(t, err)
		serve(t, sb.NS, owner, 80)
		_, err = from.WriteTo([]byte("?"), to)
		check(t, err)
		check(t, from.SetReadDeadline(time.Now().Add(patience)))
		buf := make([]byte, 100)
		n, _, err := from.ReadFrom(buf)
		if err != nil || string(buf[:n]) != owner {
			t.Errorf("round %d: %q %v", i, buf[:n], err)
		}
		check(t, sb.NS.Close())
		check(t, w.Leave(bg, owner))
	}
}
