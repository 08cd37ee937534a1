package network

import (
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

func TestParseRate(t *testing.T) {
	for s, want := range map[string]uint64{"16000": 16000, "500k": 500_000, "10m": 10_000_000, "1.5G": 1_500_000_000, "": 0, "1": 0, "10x": 0, "-1m": 0, "1e9": 0, "m": 0, "1001g": 0, "NaN": 0, "1.2.3m": 0} {
		if got, err := ParseRate(s); got != want || (err == nil) != (want > 0) {
			t.Errorf("%q: %d %v, want %d", s, got, err, want)
		}
	}
}

// transfer is how long so many bytes take from one namespace to the other.
func transfer(t *testing.T, from, to *os.File, addr string, size int) time.Duration {
	t.Helper()
	var ln net.Listener
	in(t, to, func() {
		var err error
		ln, err = net.Listen("tcp", addr)
		check(t, err)
	})
	defer ln.Close()
	began := time.Now() // before the first byte: what waits in buffers until somebody takes it would count for nothing
	go in(t, from, func() {
		c, err := net.DialTimeout("tcp", addr, patience)
		if err != nil {
			t.Error(err)
			ln.Close()
			return
		}
		defer c.Close()
		if _, err = c.Write(make([]byte, size)); err != nil {
			t.Error(err)
		}
	})
	c, err := ln.Accept()
	check(t, err)
	defer c.Close()
	check(t, c.SetDeadline(time.Now().Add(patience)))
	n, err := io.Copy(io.Discard, c)
	check(t, err)
	if n != int64(size) {
		t.Errorf("%d bytes of %d", n, size)
	}
	return time.Since(began)
}

// A slow machine can only be slower than the limit; so the test asks only that it is not faster, and for the rest what the kernel has.
func TestRates(t *testing.T) {
	w := newWorld(t, nil)
	w.network(t, Network{Name: "slow", Options: map[string]string{OptionRateIngress: "8m"}})
	a := w.join(t, JoinRequest{Owner: "a", Name: "a", Endpoints: on("slow"), Rates: Rates{Egress: 16_000_000, Ingress: 1_000_000_000}})
	addr := a.Endpoints[0].IPv4.Addr().String()
	const size = 1 << 20 // 1.05 s at 8 Mbit/s, 0.52 s at 16
	if d := transfer(t, nil, a.NS, addr+":9000", size); d < 700*time.Millisecond {
		t.Errorf("received %d bytes in %v, with a limit of 8 Mbit/s", size, d)
	}
	if d := transfer(t, a.NS, w.outside, "203.0.113.2:9000", size); d < 350*time.Millisecond {
		t.Errorf("sent %d bytes in %v, with a limit of 16 Mbit/s", size, d)
	}
	in(t, a.NS, func() {
		if out, err := exec.Command("tc", "qdisc", "show", "dev", "eth0").CombinedOutput(); err != nil || !strings.Contains(string(out), "rate 16Mbit") {
			t.Errorf("in the container: %v %s", err, out)
		}
	})
	b := w.join(t, JoinRequest{Owner: "b", Name: "b", Rates: Rates{Ingress: 32_000}})
	pid := process(t, b.NS)
	ep, err := w.Connect(bg, "b", pid, EndpointRequest{Network: "slow"})
	check(t, err)
	for _, e := range []Endpoint{b.Endpoints[0], ep} {
		if out, err := exec.Command("tc", "qdisc", "show", "dev", w.linkName(e)).CombinedOutput(); err != nil || !strings.Contains(string(out), "rate 32Kbit") {
			t.Errorf("%s: %v %s", e.Network, err, out)
		}
	}
	if _, err := w.Create(bg, Network{Name: "bad", Options: map[string]string{OptionRateEgress: "fast"}}); err == nil || !strings.Contains(err.Error(), `dev.corten.rate.egress: rate "fast"`) {
		t.Errorf("a rate that makes no sense: %v", err)
	}
}
