package network

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"corten.dev/corten/internal/linux/netlink"
	"golang.org/x/sys/unix"
)

// Each host's end of a veth had a route of IPv6 (ff00::/8), and every interface that came or went had the kernel go through those of all containers: of 1,000, 0.7 ms for each start.
func TestBridgePortsHaveNoIPv6(t *testing.T) {
	w := newWorld(t, nil)
	w.quiet.after = time.Millisecond
	check(t, w.Settle(bg))
	sb := w.join(t, JoinRequest{Owner: "c1"})
	host := w.linkName(sb.Endpoints[0])
	if _, err := os.Stat("/proc/sys/net/ipv6"); err != nil {
		t.Skip("a kernel without IPv6")
	}
	until(t, "IPv6 off", func() bool {
		text, err := os.ReadFile("/proc/sys/net/ipv6/conf/" + host + "/disable_ipv6")
		check(t, err)
		return strings.TrimSpace(string(text)) == "1"
	})
	if routes, err := os.ReadFile("/proc/net/ipv6_route"); err != nil || strings.Contains(string(routes), host+"\n") {
		t.Errorf("%v, routes:\n%s", err, routes)
	}
	check(t, w.Leave(bg, "c1"))
	w.quiet.close()
	w.quiet.add([]*network{w.nets[w.names["bridge"]]}, sb.Endpoints)
	if w.quiet.timer != nil && w.quiet.timer.Stop() {
		t.Error("something is to be done after the end")
	}
}

// Settings of containers' namespaces are written in a procfs of the room's own, which is exchanged before the names of many namespaces are in it, and not kept open at the end.
func TestInnerSettings(t *testing.T) {
	w := newWorld(t, nil)
	const path = "net/ipv4/ip_default_ttl"
	was, err := os.ReadFile("/proc/sys/" + path)
	check(t, err)
	seen := map[*innerProc]int{}
	for i := range procUses + 1 {
		want := fmt.Sprint(100 + i)
		ns, err := w.inNew(func(*netlink.Conn, *os.File) error {
			if err := w.innerSysctl(path, want); err != nil {
				return err
			}
			got, err := os.ReadFile("/proc/sys/" + path)
			if err == nil && strings.TrimSpace(string(got)) != want {
				t.Errorf("it is %q, not %s", got, want)
			}
			return err
		})
		check(t, err)
		check(t, ns.Close())
		seen[w.procs.spare]++
	}
	if len(seen) < 2 {
		t.Errorf("one procfs for %d namespaces", procUses+1)
	}
	if now, err := os.ReadFile("/proc/sys/" + path); err != nil || string(now) != string(was) {
		t.Errorf("the host's was changed from %q to %q (%v)", was, now, err)
	}
	if err := w.innerSysctl("net/no/such", "1"); !os.IsNotExist(err) && !strings.Contains(fmt.Sprint(err), unix.ENOENT.Error()) {
		t.Error(err)
	}
	check(t, w.procs.close())
	check(t, w.innerSysctl(path, strings.TrimSpace(string(was)))) // a filling of the pool that is late
	if w.procs.spare != nil {
		t.Error("a procfs stays open")
	}
}
