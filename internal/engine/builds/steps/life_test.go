package steps_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/buildkit/solver/pb"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/build/step"
	"corten.dev/corten/internal/engine/builds/steps"
	"corten.dev/corten/internal/engine/hostspec"
	"corten.dev/corten/internal/network"
	"corten.dev/corten/internal/snapshot"
	"corten.dev/corten/internal/snapshot/overlay"
)

// noNetworks has nothing to offer: steps get an empty network namespace.
type noNetworks struct{}

func (noNetworks) Join(context.Context, network.JoinRequest) (*network.Sandbox, error) {
	return &network.Sandbox{ResolvConf: []byte("nameserver 192.0.2.1\n")}, nil
}
func (noNetworks) Leave(context.Context, string) error { return nil }
func (noNetworks) HostGateway() netip.Addr             { return netip.Addr{} }

// engine is the part of an engine in TestKilledEngine: it runs a step until it is killed.
func engine(args []string) error {
	dir, chain, script := args[0], snapshot.ChainID(args[1]), args[2]
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	trees, err := overlay.New(overlay.Options{Root: dir + "/snapshots", Logger: log})
	if err != nil {
		return err
	}
	x, err := steps.New(context.Background(), steps.Options{Root: dir + "/steps", Networks: noNetworks{}, Log: log, Maker: &hostspec.Maker{Security: hostspec.NewSecurity("", log), CgroupParent: testCgroups}})
	if err != nil {
		return err
	}
	s, err := step.New(context.Background(), step.Options{Executor: x, Trees: trees, Log: log})
	if err != nil {
		return err
	}
	v := &build.Vertex{Op: &pb.Op{Op: &pb.Op_Exec{Exec: &pb.ExecOp{
		Meta: &pb.Meta{Args: strings.Split(script, "|"), Cwd: "/"}, Mounts: []*pb.Mount{{Dest: "/"}, {Dest: "/t", Input: -1, Output: -1, MountType: pb.MountType_TMPFS}},
	}}}, Inputs: make([]build.Edge, 1)}
	op, err := s.Make(v)
	if err != nil {
		return err
	}
	_, err = op.Run(context.Background(), build.Env{Progress: &printer{}}, []build.Output{{Chain: chain}})
	return err
}

type printer struct{ progress }

func (*printer) Log(_ int, data []byte) { os.Stdout.Write(data) }

// processes are those in the cgroups of steps.
func processes(t *testing.T) (pids []string) {
	t.Helper()
	for _, pattern := range []string{"/sys/fs/cgroup/pids" + testCgroups + "/step-*/cgroup.procs", "/sys/fs/cgroup" + testCgroups + "/step-*/cgroup.procs"} {
		names, _ := filepath.Glob(pattern)
		for _, name := range names {
			text, err := os.ReadFile(name)
			if err == nil {
				pids = append(pids, strings.Fields(string(text))...)
			}
		}
	}
	return pids
}

// An engine that is killed takes its steps with it: a process that has changed its user since is not killed by the kernel (it forgets the signal of the parent's death then), and falls to
// the next engine, like the cgroups.
func TestKilledEngine(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	for name, c := range map[string]struct {
		args   string
		atOnce bool
	}{
		"a shell and what it started": {"/bin/sh|-c|sleep 600 & sleep 600 & echo ready; wait", true},
		"another user":                {"/self|as|500|/bin/sh|-c|sleep 600 & echo ready; wait", false},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			log := slog.New(slog.NewTextHandler(t.Output(), nil))
			trees, err := overlay.New(overlay.Options{Root: dir + "/snapshots", Logger: log})
			must(t, err)
			base, err := trees.Apply(t.Context(), "", "", bytes.NewReader(busybox(t)))
			must(t, err)
			chain := (&host{t: t, trees: trees, base: base.Chain}).withSelf()
			must(t, trees.Close())
			cmd := exec.Command("/proc/self/exe", "engine", dir, string(chain), c.args)
			cmd.Env = append(os.Environ(), "CORTEN_TEST_CGROUPS="+testCgroups)
			out, err := cmd.StdoutPipe()
			must(t, err)
			cmd.Stderr = os.Stderr
			must(t, cmd.Start())
			line, err := bufio.NewReader(out).ReadString('\n')
			if line != "ready\n" {
				t.Errorf("%q %v", line, err)
			}
			running := processes(t)
			if len(running) < 2 {
				t.Errorf("processes: %q", running)
			}
			must(t, cmd.Process.Kill())
			_ = cmd.Wait()
			if c.atOnce {
				for i := 0; len(processes(t)) > 0 && i < 3000; i++ {
					time.Sleep(10 * time.Millisecond)
				}
				if left := processes(t); len(left) > 0 {
					t.Errorf("half a minute later there are still %q", left)
				}
			}
			trees, err = overlay.New(overlay.Options{Root: dir + "/snapshots", Logger: log})
			must(t, err)
			defer func() { must(t, trees.Close()) }()
			x, err := steps.New(t.Context(), steps.Options{Root: dir + "/steps", Networks: noNetworks{}, Log: log, Maker: &hostspec.Maker{Security: hostspec.NewSecurity("", log), CgroupParent: testCgroups}})
			must(t, err)
			defer func() { must(t, x.Close()) }()
			_, err = step.New(t.Context(), step.Options{Executor: x, Trees: trees, Log: log})
			must(t, err)
			for _, pid := range running {
				if stat, err := os.ReadFile("/proc/" + pid + "/stat"); err == nil && !strings.Contains(string(stat), ") Z ") { // nobody here reaps orphans
					t.Errorf("process %s is there after the start of the next engine: %s", pid, stat)
				}
			}
			if left, _ := filepath.Glob("/sys/fs/cgroup/*" + testCgroups + "/step-*"); len(left) > 0 {
				t.Errorf("cgroups: %q", left)
			}
			must(t, trees.Walk(t.Context(), func(key string, _ map[string]string) error {
				t.Errorf("tree %s is left", key)
				return nil
			}))
			entries, err := os.ReadDir(dir + "/steps/runtime")
			if len(entries) > 0 || err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Errorf("records: %v %v", entries, err)
			}
			dirs, _ := filepath.Glob("/sys/fs/cgroup/*" + testCgroups)
			for _, d := range dirs {
				must(t, os.Remove(d))
			}
		})
	}
}

// census counts what a step could leave behind.
func census(t *testing.T, h *host) map[string]int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	cgroups, _ := filepath.Glob("/sys/fs/cgroup/*" + testCgroups + "/step-*")
	records, _ := os.ReadDir(h.dir + "/run/steps/runtime")
	folders, _ := os.ReadDir(h.dir + "/snapshots/trees")
	return map[string]int{
		"descriptors": len(fds), "mounts": bytes.Count(mounts, []byte(h.dir)), "cgroups": len(cgroups), "records": len(records), "trees": len(folders), "goroutines": runtime.NumGoroutine(),
		"processes": len(processes(t)),
	}
}

func TestNothingIsLeft(t *testing.T) {
	h := newHost(t)
	mix := func() {
		var all sync.WaitGroup
		for i := range 6 {
			all.Go(func() {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				r := h.sh([]string{"true", "sleep 60 & exit 3", "sleep 60", "echo x | cat", "cat /s; cat /in/seed", "kill -9 $$"}[i],
					&pb.Mount{Dest: "/s", Input: -1, Output: -1, MountType: pb.MountType_SECRET, SecretOpt: &pb.SecretOpt{ID: "x", Mode: 0o400}},
					&pb.Mount{Dest: "/a", Input: -1, Output: -1, MountType: pb.MountType_SSH, SSHOpt: &pb.SSHOpt{ID: "default"}},
					&pb.Mount{Dest: "/c", Input: -1, Output: -1, MountType: pb.MountType_CACHE, CacheOpt: &pb.CacheOpt{ID: "c"}},
					&pb.Mount{Dest: "/in", Input: 0, Output: -1, Selector: "/data"})
				r.session, r.ctx = &build.Session{Secrets: secrets{"x": "y"}, SSH: &agent{}}, ctx
				if i == 2 {
					time.AfterFunc(50*time.Millisecond, cancel)
				}
				_, _, err := h.try(r)
				var failed *build.StepError
				if errors.As(err, &failed) { // who solves the graph does that
					for _, key := range failed.Mounts {
						must(t, h.trees.Remove(context.Background(), key))
					}
				}
			})
		}
		all.Wait()
	}
	mix()
	settled := func() map[string]int {
		c := census(t, h)
		for range 100 { // what goes on in the background: ready namespaces, mounts that are taken down
			time.Sleep(20 * time.Millisecond)
			if now := census(t, h); fmt.Sprint(now) == fmt.Sprint(c) {
				time.Sleep(60 * time.Millisecond)
				if now = census(t, h); fmt.Sprint(now) == fmt.Sprint(c) {
					return c
				}
			}
			c = census(t, h)
		}
		return c
	}
	before := settled()
	for range 4 {
		mix()
	}
	var more []string
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		more = more[:0]
		after := census(t, h)
		for what, n := range before {
			if after[what] > n+map[string]int{"descriptors": 14, "goroutines": 2}[what] { // the ready namespaces may not all have been there yet
				more = append(more, fmt.Sprintf("%s: %d before, %d after", what, n, after[what]))
			}
		}
		if len(more) == 0 || time.Now().After(deadline) {
			break
		}
	}
	if len(more) > 0 {
		t.Error(strings.Join(more, "\n"))
	}
	if before["cgroups"] > 0 || before["processes"] > 0 || before["records"] > 0 {
		t.Errorf("%v", before)
	}
}

// What a failed step left is looked at with its mounts, environment and user, in a terminal.
func TestShellInAFailedStep(t *testing.T) {
	h := newHost(t)
	r := h.sh("echo half >/work; echo more >/c/cached; exit 9", &pb.Mount{Dest: "/c", Input: -1, Output: -1, MountType: pb.MountType_CACHE, CacheOpt: &pb.CacheOpt{ID: "c"}},
		&pb.Mount{Dest: "/own", Input: -1, Output: 1})
	r.exec.Meta.Env = []string{"WHERE=step"}
	_, _, err := h.try(r)
	var failed *build.StepError
	if !errors.As(err, &failed) || failed.ExitCode != 9 {
		t.Fatal(err)
	}
	defer func() {
		for _, key := range failed.Mounts {
			must(t, h.trees.Remove(context.Background(), key))
		}
	}()
	ctr, cmd, err := h.steps.Failed(t.Context(), r.env(nil), failed)
	must(t, err)
	if strings.Join(cmd.Args, " ") != "/bin/sh" {
		t.Errorf("shell %q", cmd.Args)
	}
	in, type_ := io.Pipe()
	var out progress
	cmd.Tty, cmd.Rows, cmd.Cols, cmd.Stdin, cmd.Stdout = true, 20, 70, in, writer{&out}
	proc, err := ctr.Start(cmd, nil)
	must(t, err)
	expect := func(line, want string) {
		t.Helper()
		fmt.Fprintln(type_, line)
		for i := 0; !strings.Contains(out.String(), want); i++ {
			if i > 3000 {
				t.Fatalf("after %q no %q in %q", line, want, out.String())
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	expect("cat /work /c/cached; echo $WHERE$TERM; stty size; tty", "half\r\nmore\r\nstepxterm\r\n20 70\r\n/dev/pts/0\r\n")
	must(t, proc.Resize(30, 90))
	expect("stty size", "30 90\r\n")
	beside, err := ctr.Start(step.Command{Args: []string{"/bin/sh", "-c", "cat; ls /proc | grep -c '^[0-9]'; exit 6"}, Stdin: strings.NewReader("to the second\n"), Stdout: writer{&out}, Cwd: "/"}, nil)
	must(t, err)
	if code, err := beside.Wait(); code != 6 || err != nil || !strings.Contains(out.String(), "to the second\n") {
		t.Errorf("%d %v %q", code, err, out.String())
	}
	tree, err := ctr.Open(0)
	must(t, err)
	if text, err := os.ReadFile(fmt.Sprintf("/proc/self/fd/%d/work", tree.Root.Fd())); string(text) != "half\n" {
		t.Error(string(text), err)
	}
	must(t, tree.Close())
	expect("exit 7", "exit 7")
	if code, err := proc.Wait(); code != 7 || err != nil {
		t.Error(code, err)
	}
	type_.Close()
	must(t, ctr.Release(t.Context()))
	must(t, ctr.Release(t.Context()))
	for _, key := range failed.Mounts {
		if key != "" {
			if _, err := h.trees.Changes(t.Context(), key); err != nil {
				t.Errorf("tree %s: %v", key, err)
			}
		}
	}
}

type writer struct{ p *progress }

func (w writer) Write(b []byte) (int, error) {
	w.p.Log(1, b)
	return len(b), nil
}

func TestSideBySide(t *testing.T) {
	h := newHost(t)
	var all sync.WaitGroup
	chains := make([]snapshot.ChainID, 8)
	for i := range chains {
		all.Go(func() {
			var out string
			chains[i], out = h.do(h.sh(fmt.Sprintf("echo %d >/n; cat /n", i)))
			if out != fmt.Sprintln(i) {
				t.Errorf("step %d: %q", i, out)
			}
		})
	}
	all.Wait()
	for i, chain := range chains {
		if h.files(chain) != "n:2" {
			t.Errorf("step %d: %s", i, h.files(chain))
		}
	}
}
