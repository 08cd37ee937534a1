package network

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestIPv6PortsOfIPv4Containers(t *testing.T) {
	w := newWorld(t, func(o *Options) { o.PortProxy = []string{"/proc/self/exe", "portproxy"} })
	req := JoinRequest{Owner: "web", Name: "web", Ports: []Port{{Proto: "tcp", ContainerPort: 80, HostPort: 8080}, {Proto: "udp", ContainerPort: 80, HostPort: 8080},
		{Proto: "tcp", ContainerPort: 80, HostPort: 8081, HostIP: netip.IPv6Loopback()}}}
	web := w.join(t, req)
	if len(web.Ports) != 5 {
		t.Errorf("ports %+v", web.Ports)
	}
	serve(t, web.NS, "web", 80)
	for _, proto := range []string{"tcp", "udp"} {
		wantPrefix(t, proto+" loopback", ask(t, nil, proto, "[::1]:8080"), "web")
		wantPrefix(t, proto+" outside", ask(t, w.outside, proto, "[2001:db8::1]:8080"), "web")
	}
	wantPrefix(t, "only loopback", ask(t, nil, "tcp", "[::1]:8081"), "web")
	wantPrefix(t, "only loopback, from outside", knock(t, w.outside, "tcp", "[2001:db8::1]:8081"), "!")

	pid := process(t, web.NS)
	w.crash(t)
	wantPrefix(t, "while the engine is away", ask(t, w.outside, "tcp", "[2001:db8::1]:8080"), "web")
	w.open(t)
	check(t, w.Restore(bg, req, *web, pid))
	check(t, w.Settle(bg))
	wantPrefix(t, "after restore", ask(t, w.outside, "tcp", "[2001:db8::1]:8080"), "web")
	check(t, w.Leave(bg, "web"))
	wantPrefix(t, "after leave", knock(t, nil, "tcp", "[::1]:8080"), "!")
	web = w.join(t, req) // the port is free at once
	serve(t, web.NS, "again", 80)
	wantPrefix(t, "joined again", ask(t, nil, "tcp", "[::1]:8080"), "again")
	killProxy(t, w.opt.ExecRoot)
	eventually(t, "after the proxy was killed", "again", func() string { return knock(t, nil, "tcp", "[::1]:8080") })
}

// killProxy kills the process that listens on the control socket.
func killProxy(t *testing.T, execRoot string) {
	t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	check(t, err)
	for _, path := range dirs {
		raw, _ := os.ReadFile(path)
		if string(raw) == "/proc/self/exe\x00portproxy\x00" {
			var pid int
			for _, c := range strings.Split(path, "/")[2] {
				pid = pid*10 + int(c-'0')
			}
			check(t, unix.Kill(pid, unix.SIGKILL))
		}
	}
}

func TestIPv6Networks(t *testing.T) {
	w := newWorld(t, func(o *Options) {
		o.IPv6 = true
		o.BIP6 = netip.MustParsePrefix("fd12:3456::1/64")
		o.PortProxy = []string{"/proc/self/exe", "portproxy"}
	})
	web := w.join(t, JoinRequest{Owner: "web", Name: "web", Ports: []Port{{Proto: "tcp", ContainerPort: 80, HostPort: 8080}}})
	other := w.join(t, JoinRequest{Owner: "other", Name: "other"})
	serve(t, web.NS, "web", 80)
	ip := web.Endpoints[0].IPv6.Addr()
	wantPrefix(t, "from the host", ask(t, nil, "tcp", "["+ip.String()+"]:80"), "web")
	wantPrefix(t, "other container", ask(t, other.NS, "tcp", "["+ip.String()+"]:80"), "web")
	wantPrefix(t, "host address", ask(t, nil, "tcp", "[2001:db8::1]:8080"), "web")
	wantPrefix(t, "outside", ask(t, w.outside, "tcp", "[2001:db8::1]:8080"), "web 2001:db8::2")
	wantPrefix(t, "other container by host", ask(t, other.NS, "tcp", "[2001:db8::1]:8080"), "web")
	wantPrefix(t, "itself by host", ask(t, web.NS, "tcp", "[2001:db8::1]:8080"), "web")
	wantPrefix(t, "loopback", ask(t, nil, "tcp", "[::1]:8080"), "web")
	wantPrefix(t, "routed from outside", knock(t, w.outside, "tcp", "["+ip.String()+"]:80"), "!")
	serve(t, w.outside, "outside", 9000)
	wantPrefix(t, "to the outside", ask(t, other.NS, "tcp", "[2001:db8::2]:9000"), "outside 2001:db8::1")
}
