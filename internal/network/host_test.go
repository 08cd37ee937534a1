package network

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"corten.dev/corten/internal/linux/netlink"
	"corten.dev/corten/internal/network/dns"
	"corten.dev/corten/internal/network/portproxy"
	"golang.org/x/sys/unix"
)

// The tests run in a host of their own: the test program starts itself again in a new network namespace, so that no bridge, rule
// or address of theirs ever meets the machine's.
func TestMain(m *testing.M) {
	if len(os.Args) >= 2 && os.Args[1] == "portproxy" {
		if len(os.Args) > 2 && os.Args[2] == "names" {
			os.Exit(dns.Main(strings.Join(os.Args[3:], "")))
		}
		os.Exit(portproxy.Main())
	}
	if os.Getenv("CORTEN_TEST_HOST") != "" {
		if err := loopbackUp(); err != nil {
			fmt.Fprintln(os.Stderr, "tests in a host of their own:", err)
			os.Exit(1)
		}
	}
	if os.Getuid() != 0 || os.Getenv("CORTEN_TEST_HOST") != "" {
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), "CORTEN_TEST_HOST=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "tests in a host of their own:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func loopbackUp() error {
	c, err := netlink.Dial(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	var b netlink.Batch
	b.SetUp(1)
	return errors.Join(c.Do(&b), c.Close())
}

// world is a host with one neighbour outside: the host has 203.0.113.1, the neighbour 203.0.113.2 and a default route through the host.
type world struct {
	*Local
	outside *os.File
	opt     Options
}

func newWorld(tb testing.TB, change func(*Options)) *world {
	tb.Helper()
	if os.Getuid() != 0 {
		tb.Skip("needs root")
	}
	opt := Options{Root: tb.TempDir(), ExecRoot: tb.TempDir(), Table: "cortentest", Bridge: "ct0", Names: []string{"/proc/self/exe", "portproxy", "names"}, Logger: slog.New(slog.NewTextHandler(tb.Output(), nil))}
	if change != nil {
		change(&opt)
	}
	w := &world{opt: opt}
	rt := &netlink.Pool{Proto: unix.NETLINK_ROUTE}
	host, err := rt.Take()
	check(tb, err)
	w.open(tb)
	w.outside, err = w.inNew(func(in *netlink.Conn, ns *os.File) error {
		var b netlink.Batch
		b.AddVeth(netlink.Veth{Name: "up0", PeerName: "eth0", PeerNS: ns})
		if err := host.Do(&b); err != nil {
			return err
		}
		up, err := host.LinkByName("up0")
		if err != nil {
			return err
		}
		b.Reset()
		b.AddAddr(up.Index, netip.MustParsePrefix("203.0.113.1/24"))
		b.AddAddr(up.Index, netip.MustParsePrefix("2001:db8::1/64"))
		if err := host.Do(&b); err != nil {
			return err
		}
		eth, err := in.LinkByName("eth0")
		if err != nil {
			return err
		}
		b.Reset()
		b.AddAddr(eth.Index, netip.MustParsePrefix("203.0.113.2/24"))
		b.AddAddr(eth.Index, netip.MustParsePrefix("2001:db8::2/64"))
		b.SetUp(eth.Index)
		b.AddRoute(eth.Index, netip.Prefix{}, netip.MustParseAddr("203.0.113.1"))
		b.AddRoute(eth.Index, netip.Prefix{}, netip.MustParseAddr("2001:db8::1"))
		return in.Do(&b)
	})
	check(tb, err)
	tb.Cleanup(func() {
		check(tb, w.Close())
		var b netlink.Batch
		b.DelLink("up0")
		check(tb, host.Do(&b))
		check(tb, w.outside.Close())
		links, err := host.Links("")
		check(tb, err)
		for _, l := range links {
			if strings.HasPrefix(l.Name, "c") || strings.HasPrefix(l.Name, "br-") {
				tb.Errorf("link %s is left over", l.Name)
			}
		}
		out, _ := exec.Command("nft", "list", "tables").CombinedOutput()
		if strings.Contains(string(out), "corten") {
			tb.Errorf("rules are left over: %s", out)
		}
		check(tb, rt.Close())
		check(tb, host.Close())
	})
	return w
}

func (w *world) open(tb testing.TB) {
	tb.Helper()
	l, err := New(w.opt)
	check(tb, err)
	w.Local = l
}

func (w *world) join(tb testing.TB, req JoinRequest) *Sandbox {
	tb.Helper()
	sb, err := w.Join(context.Background(), req)
	check(tb, err)
	tb.Cleanup(func() {
		_ = sb.CloseHandles() // some tests have closed the namespace
		check(tb, w.Leave(context.Background(), req.Owner))
	})
	return sb
}

// in runs fn on a thread in the namespace; nil is the host's.
func in(tb testing.TB, ns *os.File, fn func()) {
	tb.Helper()
	if ns == nil {
		fn()
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		home, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			tb.Error(err)
			return
		}
		defer home.Close()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			tb.Error(err)
			return
		}
		fn()
		if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
	}()
	<-done
}

// serve answers every tcp connection and udp packet on the port with the name and the peer's address.
func serve(tb testing.TB, ns *os.File, name string, port int) {
	tb.Helper()
	in(tb, ns, func() {
		ln, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
		check(tb, err)
		tb.Cleanup(func() { ln.Close() })
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
				fmt.Fprintf(c, "%s %s", name, strings.TrimPrefix(host, "::ffff:"))
				c.Close()
			}
		}()
	})
	packets(tb, ns, "udp", fmt.Sprintf(":%d", port), func([]byte, net.Addr) []byte { return []byte(name) })
}

// packets listens on a udp address in a namespace, one packet after the other, and sends back what got gives; nil is nothing. What it is given is its own only until it returns.
func packets(tb testing.TB, ns *os.File, network, addr string, got func(p []byte, from net.Addr) []byte) {
	tb.Helper()
	in(tb, ns, func() {
		pc, err := net.ListenPacket(network, addr)
		check(tb, err)
		tb.Cleanup(func() { pc.Close() })
		go func() {
			buf := make([]byte, 1500)
			for {
				n, from, err := pc.ReadFrom(buf)
				if err != nil {
					return
				}
				if p := got(buf[:n], from); p != nil {
					pc.WriteTo(p, from)
				}
			}
		}()
	})
}

// patience is how long the tests wait for what must come. A slow machine makes them slow; only a broken one makes them fail.
const patience = 60 * time.Second

// ask connects from a namespace and returns what the server says, or the error as "! …".
func ask(tb testing.TB, ns *os.File, network, addr string) string {
	tb.Helper()
	return askFor(tb, ns, network, addr, patience)
}

// knock is ask where no answer is expected: it does not wait long.
func knock(tb testing.TB, ns *os.File, network, addr string) string {
	tb.Helper()
	return askFor(tb, ns, network, addr, 400*time.Millisecond)
}

// eventually asks until the answer begins with what is wanted.
func eventually(tb testing.TB, what, want string, ask func() string) {
	tb.Helper()
	got := ask()
	for end := time.Now().Add(patience); time.Now().Before(end) && !strings.HasPrefix(got, want); time.Sleep(20 * time.Millisecond) {
		got = ask()
	}
	wantPrefix(tb, what, got, want)
}

func askFor(tb testing.TB, ns *os.File, network, addr string, limit time.Duration) (answer string) {
	tb.Helper()
	in(tb, ns, func() {
		d := net.Dialer{Timeout: limit}
		c, err := d.Dial(network, addr)
		if err != nil {
			answer = "! " + err.Error()
			return
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(limit))
		if strings.HasPrefix(network, "udp") {
			if _, err := c.Write([]byte("?")); err != nil {
				answer = "! " + err.Error()
				return
			}
			buf := make([]byte, 1500)
			n, err := c.Read(buf)
			if answer = string(buf[:n]); err != nil {
				answer = "! " + err.Error()
			}
			return
		}
		raw, err := io.ReadAll(c)
		if answer = string(raw); err != nil {
			answer = "! " + err.Error()
		}
	})
	return answer
}

func check(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

func wantPrefix(tb testing.TB, what, got, want string) {
	tb.Helper()
	if !strings.HasPrefix(got, want) {
		tb.Errorf("%s: got %q, want %q", what, got, want)
	}
}
