package monitor_test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"testing"

	"corten.dev/corten/internal/monitor"
	"corten.dev/corten/internal/monitor/monitortest"
)

// Clients that had sent stdin before the start made it impossible where there were some of them: what they had sent together did not fit the packet.
func TestStdinOfManyBeforeTheStart(t *testing.T) {
	b := newBench(t, monitor.Options{})
	const clients, each = 20, 8000
	var attached []monitor.AttachRequest
	var conns []net.Conn
	for range clients {
		client, engine := pair(t)
		opts := both
		opts.Stdin, opts.Framed, opts.Preread = true, false, bytes.Repeat([]byte("p"), each)
		attached = append(attached, monitor.AttachRequest{Conn: engine, Options: opts, End: make(chan monitor.AttachEnd, 1)})
		conns = append(conns, client)
	}
	m := b.launch(monitor.Launch{Program: monitortest.Shell(t, fmt.Sprintf("head -c %d | wc -c", clients*each)), Stdio: monitor.Stdio{Stdin: true}, Attached: attached})
	for _, c := range conns {
		if got, err := io.ReadAll(c); err != nil || strings.TrimSpace(string(got)) != strconv.Itoa(clients*each) {
			t.Errorf("%q, %v", got, err)
		}
	}
	b.wait(m)
}
