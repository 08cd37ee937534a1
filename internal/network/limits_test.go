package network

import (
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// talk is a connection that stays: what is written comes back.
type talk struct {
	net.Conn
	t *testing.T
}

// echo answers every line with itself.
func echo(tb testing.TB, ns *os.File, port int) {
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
				tb.Cleanup(func() { c.Close() })
				go func() {
					buf := make([]byte, 100)
					for {
						n, err := c.Read(buf)
						if err != nil {
							return
						}
						c.Write(buf[:n])
					}
				}()
			}
		}()
	})
}

func open(t *testing.T, ns *os.File, addr string) *talk {
	t.Helper()
	var c net.Conn
	var err error
	in(t, ns, func() { c, err = net.DialTimeout("tcp", addr, patience) })
	check(t, err)
	t.Cleanup(func() { c.Close() })
	return &talk{c, t}
}

// say writes and waits for the answer; the answer is the error, if there is one.
func (c *talk) say(wait time.Duration) string {
	check(c.t, c.SetDeadline(time.Now().Add(wait)))
	buf := make([]byte, 10)
	_, err := c.Write([]byte("hello"))
	n := 0
	if err == nil {
		n, err = c.Read(buf)
	}
	if err != nil {
		return "! " + err.Error()
	}
	return string(buf[:n])
}

func (c *talk) wantOpen(what string) {
	c.t.Helper()
	if got := c.say(patience); got != "hello" {
		c.t.Errorf("%s: %s", what, got)
	}
}

func (c *talk) wantEnded(what string) {
	c.t.Helper()
	if got := c.say(patience); !strings.HasPrefix(got, "!") || strings.Contains(got, "timeout") {
		c.t.Errorf("%s: %s", what, got)
	}
}

// Lists and rates of a container that runs are changed; what the new list does not have ends, all else goes on.
func TestLimitsOfARunningContainer(t *testing.T) {
	w := egressWorld(t)
	echo(t, w.outside, 90)
	echo(t, w.outside, 91)
	a := w.join(t, JoinRequest{Owner: "a", Name: "a", Ports: []Port{{Proto: "tcp", ContainerPort: 90, HostPort: 18090}}})
	b := w.join(t, JoinRequest{Owner: "b", Name: "b"})
	echo(t, a.NS, 90)
	echo(t, b.NS, 90)
	echo(t, nil, 92)
	pid := process(t, a.NS)
	one, other := open(t, a.NS, "203.0.113.2:90"), open(t, a.NS, "203.0.113.2:91")
	host, near, inward := open(t, a.NS, a.Endpoints[0].Gateway4.String()+":92"), open(t, a.NS, b.Endpoints[0].IPv4.Addr().String()+":90"), open(t, w.outside, "203.0.113.1:18090")
	theirs := open(t, b.NS, "203.0.113.2:91")

	check(t, w.SetLimits(bg, "a", pid, Limits{Egress: "203.0.113.2:90,good.example:80", Rates: Rates{Ingress: 500_000_000, Egress: 400_000_000}}))
	one.wantOpen("what the list has")
	near.wantOpen("a neighbour")
	inward.wantOpen("what came in by a published port")
	theirs.wantOpen("a neighbour's")
	other.wantEnded("what the list does not have")
	host.wantEnded("the host, which is not in the list")
	wantReach(t, a.NS, nil, []string{"tcp 203.0.113.2:91", "tcp 198.51.100.7:80"})
	if sb, _ := w.Sandbox("a"); !strings.Contains(string(sb.ResolvConf), "127.0.0.11") {
		t.Errorf("resolv.conf: %s", sb.ResolvConf)
	}
	wantPrefix(t, "a name in the list", lookup(t, a.NS, "udp", "good.example", dnsmessage.TypeA), "Success 198.51.100.7")
	wantPrefix(t, "a name that is not", lookup(t, a.NS, "udp", "evil.example", dnsmessage.TypeA), "NameError")
	wantReach(t, a.NS, []string{"tcp 198.51.100.7:80"}, nil)
	for _, q := range []string{command(t, nil, "tc", "qdisc", "show", "dev", w.linkName(a.Endpoints[0])), command(t, a.NS, "tc", "qdisc", "show", "dev", "eth0")} {
		if !strings.Contains(q, "tbf") {
			t.Errorf("no bucket: %s", q)
		}
	}

	// The next list has the name with another port, and subnets that overlap those of the last one.
	check(t, w.SetLimits(bg, "a", pid, Limits{Egress: "203.0.113.0/24:85-95,good.example:81", Rates: Rates{Egress: 300_000_000}}))
	one.wantOpen("what both lists have")
	wantReach(t, a.NS, nil, []string{"tcp 198.51.100.7:80", "tcp 198.51.100.7:81"})
	wantPrefix(t, "the name, which has been told before", lookup(t, a.NS, "udp", "good.example", dnsmessage.TypeA), "Success 198.51.100.7")
	wantReach(t, a.NS, []string{"tcp 198.51.100.7:81"}, []string{"tcp 198.51.100.7:80"})
	if q := command(t, nil, "tc", "qdisc", "show", "dev", w.linkName(a.Endpoints[0])); strings.Contains(q, "tbf") {
		t.Errorf("the bucket is still there: %s", q)
	}
	if q := command(t, a.NS, "tc", "qdisc", "show", "dev", "eth0"); !strings.Contains(q, "rate 300Mbit") {
		t.Errorf("the bucket is not: %s", q)
	}

	// What makes no sense changes nothing.
	if err := w.SetLimits(bg, "a", pid, Limits{Egress: "a..b"}); err == nil {
		t.Error("a list that makes no sense was taken")
	}
	one.wantOpen("as before")
	check(t, w.SetLimits(bg, "a", pid, Limits{}))
	one.wantOpen("without a list")
	wantReach(t, a.NS, []string{"tcp 203.0.113.2:80"}, nil)
	if sb, _ := w.Sandbox("a"); strings.Contains(string(sb.ResolvConf), "127.0.0.11") {
		t.Errorf("resolv.conf without a list: %s", sb.ResolvConf)
	}
	if list := nftList(t, "table", "inet", "cortentest"); strings.Contains(list, a.Endpoints[0].IPv4.Addr().String()+" .") && strings.Contains(list, "203.0.113") {
		t.Errorf("something is left: %s", list)
	}
	if list := nftList(t, "tables"); strings.Contains(list, "bridge cortentest") {
		t.Errorf("something is left: %s", list)
	}
}

// A network's list and rates are changed for all that are on it, kept, and taken back.
func TestLimitsOfANetwork(t *testing.T) {
	w := egressWorld(t)
	echo(t, w.outside, 90)
	echo(t, w.outside, 91)
	w.network(t, Network{Name: "blue", Options: map[string]string{optMTU: "1400"}})
	a := w.join(t, JoinRequest{Owner: "a", Name: "a", Endpoints: on("blue"), Rates: Rates{Ingress: 100_000_000}})
	b := w.join(t, JoinRequest{Owner: "b", Name: "b", Endpoints: on("blue"), Egress: "0.0.0.0/0,good.example"})
	pids := map[string]int{"a": process(t, a.NS), "b": process(t, b.NS)}
	change := func(req NetworkChange, want string) {
		t.Helper()
		req.Process = func(owner string) int { return pids[owner] }
		changes, err := w.Update(bg, "blue", req)
		check(t, err)
		if got := strings.Join(changes, ", "); got != want {
			t.Errorf("changes: %q, want %q", got, want)
		}
	}
	one, other, third := open(t, a.NS, "203.0.113.2:90"), open(t, a.NS, "203.0.113.2:91"), open(t, b.NS, "203.0.113.2:91")
	list := map[string]string{OptionEgress: "203.0.113.2:90", OptionRateIngress: "50m"}
	change(NetworkChange{Options: list, DryRun: true}, "add option dev.corten.egress, add option dev.corten.rate.ingress")
	other.wantOpen("after a dry run")
	change(NetworkChange{Options: list}, "add option dev.corten.egress, add option dev.corten.rate.ingress")
	change(NetworkChange{Options: list}, "")
	one.wantOpen("what the list has")
	other.wantEnded("what it does not have")
	third.wantEnded("what it does not have, of another container")
	wantReach(t, b.NS, nil, []string{"tcp 203.0.113.2:80"})
	wantPrefix(t, "a name", lookup(t, b.NS, "udp", "good.example", dnsmessage.TypeA), "NameError")
	for _, sb := range []*Sandbox{a, b} {
		if q := command(t, nil, "tc", "qdisc", "show", "dev", w.linkName(sb.Endpoints[0])); !strings.Contains(q, "rate 50Mbit") {
			t.Errorf("%s: %s", sb.Owner, q)
		}
	}
	change(NetworkChange{Options: map[string]string{OptionEgress: "all", OptionRateIngress: ""}}, "change option dev.corten.egress, remove option dev.corten.rate.ingress")
	wantReach(t, a.NS, []string{"tcp 203.0.113.2:80"}, nil)
	if q := command(t, nil, "tc", "qdisc", "show", "dev", w.linkName(a.Endpoints[0])); !strings.Contains(q, "rate 100Mbit") {
		t.Errorf("its own rate: %s", q)
	}
	change(NetworkChange{Undo: true}, "change option dev.corten.egress, add option dev.corten.rate.ingress")
	wantReach(t, a.NS, nil, []string{"tcp 203.0.113.2:80"})
	nw, err := w.Get(bg, "blue")
	check(t, err)
	if nw.Options[OptionEgress] != "203.0.113.2:90" || nw.Options[optMTU] != "1400" {
		t.Errorf("the network says %v", nw.Options)
	}
	for want, req := range map[string]NetworkChange{
		"cannot be changed":     {Options: map[string]string{optMTU: "1500"}},
		"egress list: \"a..b\"": {Options: map[string]string{OptionEgress: "a..b"}},
	} {
		if _, err := w.Update(bg, "blue", req); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
	if _, err := w.Update(bg, "bridge", NetworkChange{Options: list}); err == nil || !strings.Contains(err.Error(), "pre-defined") {
		t.Errorf("a predefined network: %v", err)
	}
	open(t, a.NS, "203.0.113.2:90").wantOpen("the list that is there again")
}

// The connection on which the name server asks was kept for ever after the last list was taken away from a container that ran on, and with it the server.
func TestGateClosesWithTheLastList(t *testing.T) {
	w := egressWorld(t)
	w.network(t, Network{Name: "blue"})
	a := w.join(t, JoinRequest{Owner: "a", Name: "a", Endpoints: on("blue"), Egress: "good.example"})
	pid := process(t, a.NS)
	running := func() bool {
		w.dns.mu.Lock()
		defer w.dns.mu.Unlock()
		return w.dns.gate.running
	}
	if !running() {
		t.Error("there is a list, and no gate")
	}
	check(t, w.SetLimits(bg, "a", pid, Limits{}))
	until(t, "the gate is closed", func() bool { return !running() })
	check(t, w.SetLimits(bg, "a", pid, Limits{Egress: "good.example"}))
	wantPrefix(t, "a name, with a list again", lookup(t, a.NS, "udp", "good.example", dnsmessage.TypeA), "Success 198.51.100.7")
}

// Networks without packets on the host cannot have what needs them.
func TestLimitsOnParents(t *testing.T) {
	w := newWorld(t, nil)
	for _, option := range []string{OptionEgress + "=none", OptionRateIngress + "=10m"} {
		key, value, _ := strings.Cut(option, "=")
		_, err := w.Create(bg, Network{Name: "lan", Driver: driverMacvlan, Options: map[string]string{optParent: "up0", key: value}})
		if err == nil || !strings.Contains(err.Error(), "needs networks of driver bridge") {
			t.Errorf("%s: %v", option, err)
		}
	}
	w.on(t, driverMacvlan, "up0")
	a := w.join(t, JoinRequest{Owner: "a", Name: "a", Endpoints: on("lan")})
	pid := process(t, a.NS)
	err := w.SetLimits(bg, "a", pid, Limits{Rates: Rates{Ingress: 10_000_000, Egress: 20_000_000}})
	if err == nil || strings.Contains(err.Error(), "\n") { // the way back was refused as well
		t.Errorf("a rate that cannot be had: %v", err)
	}
	check(t, w.SetLimits(bg, "a", pid, Limits{Rates: Rates{Egress: 20_000_000}}))
	if q := command(t, a.NS, "tc", "qdisc", "show", "dev", "eth0"); !strings.Contains(q, "rate 20Mbit") {
		t.Errorf("the rate that can: %s", q)
	}
}
