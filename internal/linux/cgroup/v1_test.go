package cgroup

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"corten.dev/corten/internal/errs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// v1Only is this host as one without a v2 tree beside its v1 hierarchies.
func v1Only(t testing.TB, name string) *Manager {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	h, err := Discover()
	if err != nil {
		t.Fatal(err)
	}
	if len(h.v1) == 0 {
		t.Skip("needs cgroup v1 hierarchies")
	}
	host := &Host{mode: V1, v1: h.v1}
	m, err := New(Options{Path: testParent() + "/" + name, ID: name, Host: host})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Destroy(); err != nil {
			t.Error(err)
		}
		if err := RemoveParent(host, testParent()); err != nil {
			t.Error(err)
		}
	})
	return m
}

// Without cgroup.kill the freezer has to hold a fork bomb still, and a paused container has to be let go to die.
func TestV1Kill(t *testing.T) {
	for name, script := range map[string]string{"v1bomb": "exec 2>/dev/null; f() { f & f & }; while :; do f; done", "v1paused": "sleep 60 & sleep 60"} {
		t.Run(name, func(t *testing.T) {
			m := v1Only(t, name)
			if err := m.Create(&specs.LinuxResources{Pids: &specs.LinuxPids{Limit: ptr(int64(60))}}); err != nil {
				t.Fatal(err)
			}
			if dir, err := m.V2Dir(); err != nil || dir != nil {
				t.Fatalf("a v2 directory where there is none: %v, %v", dir, err)
			}
			cmd := inside(t, m, script)
			time.Sleep(50 * time.Millisecond)
			if name == "v1paused" {
				if err := m.Freeze(); err != nil {
					t.Fatal(err)
				}
			}
			if err := m.Kill(unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait() // killed
			if pids, err := m.Pids(); err != nil || len(pids) > 0 {
				t.Fatalf("left: %v, %v", pids, err)
			}
		})
	}
}

// A signal other than KILL reaches every process once, and Kill does not wait for what they make of it.
func TestSignal(t *testing.T) {
	m := managed(t, "signal")
	if err := m.Create(nil); err != nil {
		t.Fatal(err)
	}
	cmd := inside(t, m, "trap 'exit 42' TERM; sleep 60 & wait")
	waitPids(t, m, 2)
	time.Sleep(20 * time.Millisecond) // for the trap
	if err := m.Kill(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // its code is looked at
	if code := cmd.ProcessState.ExitCode(); code != 42 {
		t.Errorf("exit code %d", code)
	}
	waitPids(t, m, 0)
}

// Of more processes than are held at a time the rest got no signal.
func TestSignalToMany(t *testing.T) {
	m := managed(t, "many")
	if err := m.Create(nil); err != nil {
		t.Fatal(err)
	}
	cmd := inside(t, m, fmt.Sprintf("for i in {1..%d}; do sleep 600 & done; wait", heldAtOnce+40))
	waitPids(t, m, heldAtOnce+41)
	if err := m.Kill(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // by the signal
	waitPids(t, m, 0)
}

func TestV1Refused(t *testing.T) {
	m := managed(t, "refused")
	if m.Mode() == V2 {
		t.Skip("needs cgroup v1 hierarchies")
	}
	if err := m.Create(nil); err != nil {
		t.Fatal(err)
	}
	for what, res := range map[string]specs.LinuxResources{
		"shares too small":   {CPU: &specs.LinuxCPU{Shares: ptr(uint64(1))}},
		"shares too great":   {CPU: &specs.LinuxCPU{Shares: ptr(uint64(262145))}},
		"swappiness":         {Memory: &specs.LinuxMemory{Swappiness: ptr(uint64(101))}},
		"device access":      {Devices: []specs.LinuxDeviceCgroup{{Type: "c", Access: "rwx"}}},
		"limit alone raised": {Memory: &specs.LinuxMemory{Limit: ptr(int64(64 << 20))}},
	} {
		if what == "limit alone raised" { // as `update --memory` says it
			if err := m.Set(&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(8 << 20)), Swap: ptr(int64(16 << 20))}}); err != nil {
				t.Fatal(err)
			}
		}
		if err := m.Set(&res); !errors.Is(err, errs.Invalid) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// Real-time budgets have to be handed down by someone: the error says what to do, where the kernel says "invalid argument".
func TestRealtimeWithoutBudget(t *testing.T) {
	host, err := Discover()
	if err != nil || os.Geteuid() != 0 || !host.Supports().Realtime {
		t.Skip("needs root and real-time group scheduling on cgroup v1")
	}
	m, err := New(Options{Path: "/corten-test-rt/ctr", ID: "ctr", Host: host})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := RemoveParent(host, "/corten-test-rt"); err != nil {
			t.Error(err)
		}
	}()
	runtime := int64(1000)
	err = m.Create(&specs.LinuxResources{CPU: &specs.LinuxCPU{RealtimeRuntime: &runtime}})
	if err == nil {
		t.Error("the kernel hands out what the parent does not have")
		if err := m.Destroy(); err != nil {
			t.Error(err)
		}
	} else if !strings.Contains(err.Error(), "the parent has 0 us to hand out; write more to ") {
		t.Error(err)
	}
}
