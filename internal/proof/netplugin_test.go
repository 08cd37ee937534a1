package proof

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"corten.dev/corten/internal/enginetest"
	"corten.dev/corten/internal/plugin/plugintest"
)

// netPlugin is a network plugin beside an engine, each of which may be killed.
type netPlugin struct {
	t *testing.T
	e *enginetest.Engine
	p *plugintest.Network
}

func newNetPlugin(t *testing.T) netPlugin {
	t.Helper()
	e := enginetest.Start(t)
	return netPlugin{t, e, plugintest.StartNetwork(t, plugintest.Build(t, "network"), filepath.Join(e.Plugins(), "own.sock"))}
}

// has waits until the plugin has so many endpoints, and addresses in use, gateways among them.
func (n netPlugin) has(what string, endpoints, addresses int) {
	n.t.Helper()
	for until := time.Now().Add(60 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		s := n.p.State()
		if len(s.Endpoints) == endpoints && len(s.Addresses()) == addresses {
			return
		}
		if time.Now().After(until) {
			n.t.Fatalf("%s: the plugin has %+v, want %d endpoints and %d addresses\n%s", what, s, endpoints, addresses, n.e.Log())
		}
	}
}

// waiting waits until the plugin was asked for what it does not answer.
func (n netPlugin) waiting(method string) {
	n.t.Helper()
	for until := time.Now().Add(60 * time.Second); time.Now().Before(until); time.Sleep(5 * time.Millisecond) {
		if n.p.Misbehaved(method) {
			return
		}
	}
	n.t.Fatalf("the plugin is not asked for %s\n%s", method, n.e.Log())
}

// The engine is killed while a plugin is asked for each of the things that it makes for a container, and for a network. The next engine has it take back what nobody uses; containers that ran
// before run on, on their network.
func TestKillEngineInNetworkPluginCalls(t *testing.T) {
	n := newNetPlugin(t)
	e := n.e
	e.Corten("network", "create", "-d", "own", "--ipam-driver", "own", "blue")
	e.Corten("run", "-d", "--name", "stays", "--network", "blue", enginetest.Busybox, "sleep", "1000")
	n.has("one container", 1, 2)
	for _, method := range []string{"IpamDriver.RequestAddress", "NetworkDriver.CreateEndpoint", "NetworkDriver.Join", "NetworkDriver.EndpointOperInfo", "NetworkDriver.ProgramExternalConnectivity", "NetworkDriver.Leave", "NetworkDriver.DeleteEndpoint"} {
		n.p.Bad(method + " never")
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, _ = e.Try("run", "--rm", "--network", "blue", enginetest.Busybox, "true") // what a killed engine answers is not looked at
		}()
		n.waiting(method)
		e.Kill9()
		<-done
		n.p.Bad()
		e.Up()
		n.has("after "+method, 1, 2)
		if out := e.Corten("run", "--rm", "--network", "blue", enginetest.Busybox, "ping", "-c", "1", "stays"); !strings.Contains(out, "1 packets received") {
			t.Errorf("after %s: %s", method, out)
		}
	}
	n.p.Bad("NetworkDriver.CreateNetwork never")
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = e.Try("network", "create", "-d", "own", "--ipam-driver", "own", "red")
	}()
	n.waiting("NetworkDriver.CreateNetwork")
	e.Kill9()
	<-done
	n.p.Bad()
	e.Up()
	n.has("after NetworkDriver.CreateNetwork", 1, 2)
	wait(t, "the plugin to have no network that nobody knows", func() bool {
		s := n.p.State()
		return len(s.Networks) == 1 && len(s.Pools) == 1
	})

	// The container ends while no engine runs: its interface is back on the host, or gone, and the plugin has it back.
	pid := e.Corten("inspect", "-f", "{{.State.Pid}}", "stays")
	e.Kill9()
	if out, err := exec.Command("kill", "-9", pid).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	e.Up()
	n.has("after its end", 0, 1)
	e.Corten("rm", "-f", "stays")

	// A plugin that is gone keeps nothing from being removed.
	e.Corten("run", "-d", "--name", "last", "--network", "blue", enginetest.Busybox, "sleep", "1000")
	n.p.Kill9()
	if out, err := e.Try("run", "--rm", "--network", "blue", enginetest.Busybox, "true"); err == nil || !strings.Contains(err.Error(), "plugin own cannot be reached") {
		t.Errorf("run: %v: %s", err, out)
	}
	e.Corten("rm", "-f", "last")
	e.Corten("network", "rm", "blue")
	n.p.Up()
	wait(t, "the plugin to have nothing", func() bool {
		left := n.p.State()
		return len(left.Endpoints)+len(left.Networks)+len(left.Pools) == 0
	})
	e.Kill9() // what is left is counted on an engine as fresh as the first one: this one has opened files since that are no leak
	e.Up()
}
