package proof

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"corten.dev/corten/internal/busyboxtree"
	"corten.dev/corten/internal/enginetest"
)

// limitCase is flags for `docker create` (with update: for `docker update` of a container that was created with them).
type limitCase struct {
	create, update string
	ours           string // where we differ on purpose: what our error has in it, or "works"
	why            string
}

// limitCases go through every limit of `docker run --help` and `docker update --help`, with values that fit and values that do not.
var limitCases = []limitCase{
	{create: "-m 64m"}, {create: "-m 5m"}, {create: "-m 64m --memory-swap 32m"}, {create: "--memory-swap 64m"}, {create: "-m 64m --memory-swap -1"}, {create: "--memory-swap -1"},
	{create: "-m 64m --memory-reservation 128m"}, {create: "--memory-reservation 5m"}, {create: "--memory-reservation 32m"},
	{create: "-m 64m --memory-swappiness 50"}, {create: "--memory-swappiness 101"}, {create: "--memory-swappiness 0"}, {create: "--memory-swappiness -1"},
	{create: "--oom-kill-disable"}, {create: "--oom-kill-disable -m 64m"}, {create: "--oom-score-adj 500"}, {create: "--oom-score-adj -1001"},
	{create: "--kernel-memory 64m", ours: "works", why: "API 1.42 and later have no such limit; the client says 1.41 to dockerd and a later version to us"},
	{create: "-c 512"}, {create: "-c -1", ours: "shares must be greater than or equal to 0", why: "dockerd finds out at start"},
	{create: "--cpu-period 50000 --cpu-quota 25000"}, {create: "--cpu-period 999"}, {create: "--cpu-period 1000001"}, {create: "--cpu-quota 999"}, {create: "--cpu-quota -5"},
	{create: "--cpus 0.5"}, {create: "--cpus 9999"}, {create: "--cpus -1"}, {create: "--cpus abc"}, {create: "--cpus 1 --cpu-period 10000"}, {create: "--cpus 1 --cpu-quota 10000"},
	{create: "--cpu-rt-period 1000"}, {create: "--cpu-rt-runtime 1000"}, {create: "--cpu-rt-period 1000 --cpu-rt-runtime 2000"},
	{create: "--cpuset-cpus 0"}, {create: "--cpuset-cpus 4095"}, {create: "--cpuset-cpus a"}, {create: "--cpuset-cpus 1-0"}, {create: "--cpuset-mems 0"}, {create: "--cpuset-mems 77"},
	{create: "--pids-limit 50"}, {create: "--pids-limit -1"}, {create: "--pids-limit 0"}, {create: "--pids-limit -5"},
	{create: "--blkio-weight 70000"}, {create: "--blkio-weight-device /dev/vda:5"}, {create: "--blkio-weight-device vda:500"},
	{create: "--device-read-bps /dev/vda:1mb --device-write-bps /dev/vda:1mb --device-read-iops /dev/vda:100 --device-write-iops /dev/vda:200"}, {create: "--device-read-bps /dev/vda:-1"},
	{create: "--ulimit nofile=100:200 --ulimit core=-1"}, {create: "--ulimit nofile=200:100"}, {create: "--ulimit bogus=1"}, {create: "--ulimit nofile=a:b"}, {create: "--ulimit nofile=-1:100"},
	{create: "--device /dev/null --device /dev/null:/dev/foo:r"}, {create: "--device /dev/null:foo"}, {create: "--device /dev/null:/dev/foo:x"}, {create: "--device a:b:c:d"}, {create: "--device vendor.com/class=name"},
	{create: "--device-cgroup-rule c_1:3_rwm --device-cgroup-rule a_*:*_rwm"}, {create: "--device-cgroup-rule c_1:3_x"}, {create: "--device-cgroup-rule d_1:1_r"},
	{create: "--gpus all"}, {create: "--gpus count=all,driver=nvidia"}, {create: "--gpus abc"}, {create: "--gpus all,bogus=1"},
	{create: "--shm-size 32m"}, {create: "--shm-size 0"}, {create: "--shm-size -1"},
	{create: "--sysctl net.ipv4.ip_forward=1 --sysctl kernel.shmmax=100000 --sysctl fs.mqueue.msg_max=100"}, {create: "--sysctl kernel.foo=1"}, {create: "--sysctl vm.swappiness=1"},
	{create: "--cgroup-parent /foo"}, {create: "--cgroupns host"}, {create: "--cgroupns bogus"},
	{create: "--ipc shareable"}, {create: "--ipc none"}, {create: "--ipc host"}, {create: "--ipc container:nope"},
	{create: "--ipc bogus", ours: "invalid IPC mode: bogus", why: "dockerd finds out at start"},
	{create: "--pid host"}, {create: "--pid container:nope"}, {create: "--pid bogus"}, {create: "--uts host"}, {create: "--uts host --hostname x"}, {create: "--uts bogus"},
	{create: "--userns host"}, {create: "--userns bogus"}, {create: "--runtime nope", ours: "unknown or invalid runtime name: nope", why: "today's words"},
	{create: "--cpu-count 1"}, {create: "--io-maxiops 1"},

	{create: "-m 64m", update: "-m 128m"}, {create: "-m 64m", update: "-m 128m --memory-swap 256m"}, {create: "-m 64m", update: "-m 5m"}, {create: "-m 64m", update: "--memory-swap -1"},
	{create: "-m 64m", update: "-m 256m"}, {create: "-m 64m", update: "--memory-reservation 32m"},
	{update: "-m 64m", ours: "works", why: "there is no limit that it could contradict"},
	{create: "-m 64m --memory-swap -1", update: "-m 128m", ours: "works", why: "no limit of swap is no smaller limit"},
	{create: "-m 64m", update: "--memory-swap 32m", ours: "Minimum memoryswap limit should be larger than memory limit, see usage", why: "dockerd leaves it to the kernel's refusal, or to the next start"},
	{create: "-m 64m", update: "--memory-reservation 128m", ours: "Minimum memory limit can not be less than memory reservation limit, see usage", why: "dockerd checks it at create only"},
	{create: "--cpus 1", update: "--cpu-period 10000"}, {create: "--cpus 1", update: "--cpu-quota 10000"}, {create: "--cpu-period 50000", update: "--cpus 1"}, {create: "--cpu-quota 50000", update: "--cpus 1"},
	{create: "--cpus 1", update: "--cpus 1.5"}, {update: "--cpus 9999"}, {update: "--cpus 1 --cpu-quota 5000"}, {update: "--cpuset-cpus 0 --cpuset-mems 0"}, {update: "--cpuset-cpus 4095"},
	{create: "--pids-limit 10", update: "--pids-limit -1"}, {create: "--pids-limit 10", update: "--pids-limit 0"}, {update: "--pids-limit 20"}, {update: "-c 100"}, {update: "--cpu-rt-period 1000"},
	{update: "--cpu-period 500"}, {update: "--cpu-quota 500"}, {update: "--restart on-failure:3"}, {update: "--cpu-quota -1"},
}

// limitAnswer is what one engine made of a case.
type limitAnswer struct {
	code       int
	text       string
	hostConfig map[string]any
}

// hostOwn differs from engine to engine: the list of hidden paths grew, and what is the default has a name of its own.
var hostOwn = []string{"MaskedPaths", "Runtime", "ConsoleSize", "LogConfig", "KernelMemory", "KernelMemoryTCP", "NetworkMode"}

// Docker's engine of Debian and ours, asked by the same client, refuse the same limits in the same words with the same codes, and show the same of what they accept.
func TestPeersLimits(t *testing.T) {
	p := newPeers(t, "docker")
	if _, err := os.Stat("/sys/fs/cgroup/memory/memory.limit_in_bytes"); err != nil {
		t.Skip("dockerd's answers depend on what the kernel can limit; the ones here are of cgroup v1")
	}
	e := enginetest.Start(t, "--cdi-spec-dir", "")
	p.dockerd()
	image, err := busyboxtree.Tar(busyboxtree.Path)
	if err != nil {
		t.Skip(err)
	}
	if err := os.WriteFile(p.dir+"/busybox.tar", image, 0o600); err != nil {
		t.Fatal(err)
	}
	p.run("docker", "import", p.dir+"/busybox.tar", enginetest.Busybox)
	got := make([][2]limitAnswer, len(limitCases))
	started := time.Now()
	var group sync.WaitGroup
	for side, sock := range []string{"unix://" + p.dir + "/docker.sock", e.Socket()} {
		group.Add(1)
		go func() {
			defer group.Done()
			l := limitPeer{p: p, sock: sock}
			for i, c := range limitCases {
				got[i][side] = l.answer(t, c)
			}
			l.clean(t)
		}()
	}
	group.Wait()
	t.Logf("%d cases in %s", len(limitCases), time.Since(started).Round(time.Millisecond))
	for i, c := range limitCases {
		docker, ours := got[i][0], got[i][1]
		name := strings.TrimSpace("create " + c.create + " update " + c.update)
		switch {
		case c.ours == "works":
			if ours.code != 0 {
				t.Errorf("%s: %s", name, ours.text)
			}
		case c.ours != "":
			if ours.code == 0 || !strings.Contains(ours.text, c.ours) {
				t.Errorf("%s: %d %s", name, ours.code, ours.text)
			}
		case docker.code != ours.code || !strings.EqualFold(docker.text, ours.text): // today's docker begins its words with small letters
			t.Errorf("%s:\ndocker: %d %s\nours:   %d %s", name, docker.code, docker.text, ours.code, ours.text)
		case !reflect.DeepEqual(docker.hostConfig, ours.hostConfig):
			for key := range docker.hostConfig {
				if !reflect.DeepEqual(docker.hostConfig[key], ours.hostConfig[key]) {
					t.Errorf("%s: HostConfig.%s: docker has %v, we have %v", name, key, docker.hostConfig[key], ours.hostConfig[key])
				}
			}
		}
	}
}

// limitPeer asks one engine.
type limitPeer struct {
	p    *peers
	sock string
	made []string
}

func (l *limitPeer) docker(args ...string) (stdout, stderr string, code int) {
	cmd := exec.CommandContext(l.p.deadline, "docker", append([]string{"-H", l.sock}, args...)...)
	cmd.Env = l.p.env
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		return "", err.Error(), -1
	}
	return strings.TrimSpace(out.String()), strings.TrimSpace(errs.String()), cmd.ProcessState.ExitCode()
}

func limitFlags(flags string) []string {
	list := strings.Fields(flags)
	for i := range list { // rules have blanks inside
		if i > 0 && list[i-1] == "--device-cgroup-rule" {
			list[i] = strings.ReplaceAll(list[i], "_", " ")
		}
	}
	return list
}

func (l *limitPeer) answer(t *testing.T, c limitCase) (a limitAnswer) {
	id, text, code := l.docker(append(append([]string{"create"}, limitFlags(c.create)...), enginetest.Busybox, "sleep", "60")...)
	if code == 0 {
		l.made = append(l.made, id)
		if c.update != "" {
			var out string
			out, text, code = l.docker(append(append([]string{"update"}, limitFlags(c.update)...), id)...)
			text = out + text
		}
	}
	a.code = code
	if id != "" {
		text = strings.ReplaceAll(text, id, "ID")
	}
	a.text, _, _ = strings.Cut(text, "\n\nRun '")
	if id != "" {
		shown, _, _ := l.docker("inspect", "-f", "{{json .HostConfig}}", id)
		if err := json.Unmarshal([]byte(shown), &a.hostConfig); err != nil {
			t.Errorf("inspect after create %s: %v", c.create, err)
		}
		for _, key := range hostOwn {
			delete(a.hostConfig, key)
		}
	}
	return a
}

func (l *limitPeer) clean(t *testing.T) {
	if _, text, code := l.docker(append([]string{"rm", "-f"}, l.made...)...); code != 0 {
		t.Error(text)
	}
}
