package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Corten is the contestant made of the binaries in bin, with roots below dir. Its exec root lies on a tmpfs, as /run does on nearly every host.
func Corten(bin, dir, busybox string) *Engine {
	run := filepath.Join(runDir(), filepath.Base(filepath.Dir(dir)))
	sock := "unix://" + filepath.Join(run, "corten.sock")
	return &Engine{
		Label: "corten", Client: []string{filepath.Join(bin, "corten"), "-H", sock}, Busybox: busybox, Dir: dir,
		Daemon: func(context.Context) (*exec.Cmd, error) {
			return daemon(filepath.Join(dir, "cortend.log"), filepath.Join(bin, "cortend"), "-H", sock, "--data-root", filepath.Join(dir, "data"),
				"--exec-root", run, "--bridge", "ctnbench0", "--bip", "10.213.0.1/16", "--nft-table", "corten-bench", "--config-file", emptyConfig(dir))
		},
		Cleanup: func() error { return errors.Join(os.RemoveAll(run), os.RemoveAll(dir)) },
	}
}

// runDir is /run where that is a tmpfs, else another tmpfs, else the folder for temporary files.
func runDir() string {
	const tmpfs = 0x01021994 // statfs(2)
	for _, d := range []string{"/run", "/dev/shm"} {
		var st syscall.Statfs_t
		if syscall.Statfs(d, &st) == nil && st.Type == tmpfs {
			return d
		}
	}
	return os.TempDir()
}

// Docker is the contestant dockerd (Debian: docker.io) with roots and a bridge of its own, and without packet rules, which only makes it faster.
func Docker(dir, busybox string) *Engine {
	sock := "unix://" + filepath.Join(dir, "docker.sock")
	const bridge = "dckbench0"
	return &Engine{
		Label: "docker", Client: []string{"docker", "-H", sock}, Busybox: busybox, Dir: dir,
		Daemon: func(context.Context) (*exec.Cmd, error) {
			if _, err := exec.LookPath("dockerd"); err != nil {
				return nil, errors.New("dockerd is not installed")
			}
			for _, args := range []string{"link add " + bridge + " type bridge", "addr add 10.213.2.1/24 dev " + bridge, "link set " + bridge + " up"} {
				if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
					return nil, fmt.Errorf("ip %s: %w: %s", args, err, out)
				}
			}
			return daemon(filepath.Join(dir, "dockerd.log"), "dockerd", "-H", sock, "--data-root", filepath.Join(dir, "data"), "--exec-root", filepath.Join(dir, "exec"),
				"--pidfile", filepath.Join(dir, "pid"), "--bridge", bridge, "--iptables=false", "--ip-forward=false", "--config-file", emptyConfig(dir))
		},
		Cleanup: func() error {
			out, err := exec.Command("ip", "link", "del", bridge).CombinedOutput()
			if err != nil && !strings.Contains(string(out), "Cannot find device") {
				return fmt.Errorf("ip link del: %w: %s", err, out)
			}
			return os.RemoveAll(dir)
		},
	}
}

// Podman is the contestant podman with a root of its own.
func Podman(dir, busybox string) *Engine {
	return &Engine{
		Label: "podman", Busybox: busybox, Dir: dir,
		Client:  []string{"podman", "--root", filepath.Join(dir, "root"), "--runroot", filepath.Join(dir, "run"), "--tmpdir", filepath.Join(dir, "tmp"), "--cgroup-manager", "cgroupfs"},
		Cleanup: func() error { return os.RemoveAll(dir) },
	}
}

func emptyConfig(dir string) string {
	path := filepath.Join(dir, "config.json")
	if err := os.WriteFile(path, []byte("{}"), 0o644); err != nil {
		return "/dev/null"
	}
	return path
}

func daemon(log, name string, args ...string) (*exec.Cmd, error) {
	f, err := os.Create(log)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = f, f
	return cmd, cmd.Start()
}

// OCI is a bare runtime (runc, crun, or `cortend runtime`): no image, no network, no log. It takes part in the row without network only.
type OCI struct {
	Label   string
	Command []string
	Dir     string
	Busybox string
}

// Name implements Contestant.
func (o *OCI) Name() string { return o.Label }

// Start implements Contestant: a bundle with a busybox root.
func (o *OCI) Start(context.Context) error {
	if _, err := exec.LookPath(o.Command[0]); err != nil {
		return errors.New("not installed")
	}
	bin := filepath.Join(o.Dir, "rootfs", "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return err
	}
	raw, err := os.ReadFile(o.Busybox)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(bin, "true"), raw, 0o755); err != nil {
		return err
	}
	cmd := exec.Command(o.Command[0], append(o.Command[1:len(o.Command):len(o.Command)], "spec")...)
	cmd.Dir = o.Dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s spec: %w: %s", o.Label, err, out)
	}
	if err := o.editSpec(); err != nil {
		return err
	}
	return o.once()
}

// editSpec makes the spec's process /bin/true without a terminal.
func (o *OCI) editSpec() error {
	path := filepath.Join(o.Dir, "config.json")
	raw, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var spec map[string]any
	if err := json.Unmarshal(raw, &spec); err != nil {
		return err
	}
	process, ok := spec["process"].(map[string]any)
	if !ok {
		return errors.New("the spec has no process")
	}
	process["terminal"] = false
	process["args"] = []string{"/bin/true"}
	delete(process, "rlimits") // raising them needs a capability that not every machine gives
	if raw, err = json.Marshal(spec); err != nil {
		return err
	}
	return os.WriteFile(path, raw, 0o644)
}

func (o *OCI) once() error {
	cmd := exec.Command(o.Command[0], append(o.Command[1:len(o.Command):len(o.Command)], "run", fmt.Sprintf("ctnbench%d", time.Now().UnixNano()))...)
	cmd.Dir = o.Dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
		return fmt.Errorf("%s run: %w: %s", o.Label, err, line)
	}
	return nil
}

// Stop implements Contestant.
func (o *OCI) Stop() error { return os.RemoveAll(o.Dir) }

// Prepare implements Contestant.
func (o *OCI) Prepare(_ context.Context, row string) (timed, after, done func() error, err error) {
	if row != "run-none" {
		return nil, nil, nil, ErrSkip
	}
	return o.once, nil, nil, nil
}

// Memory implements Contestant.
func (o *OCI) Memory(context.Context, int) (int64, int64, error) { return 0, 0, ErrSkip }
