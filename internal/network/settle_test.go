package network

import (
	"fmt"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/linux/netlink"
)

// On kernels before 6.8 a container that was said to be ready did not answer its first connection, about once in ten starts on a busy machine: the host's end of its veth
// had a carrier, and the bridge forwarded to it, but the kernel's link watch had not given it a queue yet (the operational state was still "unknown"), and what
// was sent to it was dropped. The client's SYN came again after a second. Join must come back only when both the link and its bridge are at work, with the machine busy too,
// from the pool or not, and also when the last port of the bridge has just gone (which takes the bridge's own carrier away).
func TestJoinWaitsUntilPacketsPass(t *testing.T) {
	for name, size := range map[string]int{"pool": 2, "nopool": -1} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, func(o *Options) { o.PoolSize = size })
			check(t, w.Settle(bg))
			w.network(t, Network{Name: "blue"})
			c, err := netlink.Dial(unix.NETLINK_ROUTE)
			check(t, err)
			defer c.Close()
			defer busy()()
			for i := range 10 {
				for _, req := range []JoinRequest{{Ports: []Port{{Proto: "tcp", ContainerPort: 80, HostPort: 8080}}}, {Endpoints: on("blue")}} {
					req.Owner, req.Name = fmt.Sprint("a", i), "a"
					sb, err := w.Join(bg, req)
					check(t, err)
					ep := sb.Endpoints[0]
					w.mu.Lock()
					br := w.nets[ep.NetworkID].br
					w.mu.Unlock()
					for _, link := range []string{w.linkName(ep), br} {
						if up, err := operational(c, link); err != nil || !up {
							t.Errorf("round %d: link %s of a joined container is not at work yet: %v", i, link, err)
						}
					}
					serve(t, sb.NS, req.Owner, 80)
					wantPrefix(t, "first connection", ask(t, nil, "tcp", ep.IPv4.Addr().String()+":80"), req.Owner)
					if len(req.Ports) > 0 {
						wantPrefix(t, "published port", ask(t, nil, "tcp", "127.0.0.1:8080"), req.Owner)
					}
					check(t, sb.NS.Close())
					check(t, w.Leave(bg, req.Owner))
				}
			}
		})
	}
}

// busy keeps the processors busy until the returned function is called.
func busy() (stop func()) {
	var done atomic.Bool
	for range 4 {
		go func() {
			for !done.Load() {
			}
		}()
	}
	return func() { done.Store(true) }
}
