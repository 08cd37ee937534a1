package steps_test

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/moby/buildkit/solver/pb"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/errs"
)

// What docker build (BuildKit) gives a RUN was looked up in its executor and frontend, and stands here line by line: whatever differs shows in what people build.
func TestWhatAStepSees(t *testing.T) {
	h := newHost(t)
	r := h.sh("env; echo; hostname; cat /etc/hosts; cat /etc/resolv.conf >/dev/null && echo resolves; id; ls -ld /work/here; pwd; echo pid $$; grep -E 'CapEff|Seccomp:|NoNewPrivs' /proc/self/status; cat /proc/self/oom_score_adj; echo x >>/etc/hosts")
	r.exec.Meta.Env = []string{"A=1"}
	r.exec.Meta.Cwd = "/work/here"
	r.exec.Meta.User = "web"
	_, _, err := h.try(r)
	if err == nil {
		t.Error("a step can write /etc/hosts")
	}
	r.exec.Meta.Args[2] = strings.TrimSuffix(r.exec.Meta.Args[2], "; echo x >>/etc/hosts")
	chain, out := h.do(r)
	env, rest, _ := strings.Cut(out, "\n\n")
	vars := strings.Split(env, "\n")
	slices.Sort(vars)
	want := []string{"A=1", "HOME=/home/web", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "PWD=/work/here"}
	vars = slices.DeleteFunc(vars, func(v string) bool { return strings.HasPrefix(v, "SHLVL=") }) // the shell's own
	if !slices.Equal(vars, want) {
		t.Errorf("environment %q, want %q", vars, want)
	}
	for _, want := range []string{
		"buildkitsandbox\n127.0.0.1\tlocalhost buildkitsandbox\n::1\tlocalhost ip6-localhost ip6-loopback\nresolves\n", "uid=500(web) gid=501(web) groups=501(web),600(extra)\n",
		" 500      501 ", "/work/here\npid 1\n", "CapEff:\t0000000000000000\n", "NoNewPrivs:\t0\n", "Seccomp:\t2\n", "\n0\n",
	} {
		if !strings.Contains(strings.ReplaceAll(rest, "web      web ", "500      501 "), want) {
			t.Errorf("no %q in\n%s", want, rest)
		}
	}
	if got := h.files(chain); got != "work/:0 work/here/:0" {
		t.Errorf("the layer has %s", got)
	}
}

// Steps found the marks of a container in their root: /.dockerenv, and an empty /etc/hostname where the image has none. Programs that look for them built other things than under
// BuildKit, and `rm -f /.dockerenv` left a mark of deletion in the layer.
func TestNothingOfAContainerInAStep(t *testing.T) {
	h := newHost(t)
	chain, out := h.do(h.sh("ls -a /; ls -a /etc; rm -f /.dockerenv /etc/hostname /etc/mtab; rm -f /etc/hosts /etc/resolv.conf 2>/dev/null || echo in use"))
	want := ".\n..\nbin\ndata\ndev\netc\nhome\nproc\nroot\nsys\ntmp\nvar\n.\n..\ngroup\nhosts\npasswd\nresolv.conf\nin use\n"
	if out != want {
		t.Errorf("a step sees %q, want %q", out, want)
	}
	if got := h.files(chain); got != "" {
		t.Errorf("the layer has %s", got)
	}
	chain, _ = h.do(h.sh("echo builder >/etc/hostname; echo >/.dockerenv; ln -s /proc/mounts /etc/mtab")) // what a step makes itself is its own
	if got := h.files(chain); got != ".dockerenv:1 etc/:0 etc/hostname:8 etc/mtab:0" {
		t.Errorf("the layer has %s", got)
	}
}

func TestMeta(t *testing.T) {
	h := newHost(t)
	r := h.sh("hostname; cat /etc/hosts; echo $http_proxy $HTTP_PROXY $NO_PROXY; ulimit -n; ulimit -c; cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null; exit 4")
	m := r.exec.Meta
	m.Hostname, m.ExtraHosts = "builder", []*pb.HostIP{{Host: "db", IP: "10.9.8.7"}, {Host: "me", IP: "host-gateway"}}
	m.ProxyEnv = &pb.ProxyEnv{HttpProxy: "http://proxy:1", NoProxy: "localhost"}
	m.Ulimit = []*pb.Ulimit{{Name: "nofile", Soft: 77, Hard: 88}, {Name: "core", Soft: 0, Hard: 0}}
	m.ValidExitCodes = []int32{4}
	m.CgroupParent = testCgroups + "/deeper"
	v := h.vertex(r)
	v.Meta = &pb.OpMetadata{LinuxResources: &pb.LinuxResources{Memory: 64 << 20}}
	op, err := h.steps.Make(v)
	must(t, err)
	var p progress
	if _, err := op.Run(t.Context(), r.env(&p), r.in); err != nil {
		t.Fatal(err, p.String())
	}
	for _, want := range []string{"builder\n", "10.9.8.7\tdb\n" + h.gateway() + "\tme\n", "http://proxy:1 http://proxy:1 localhost\n", "77\n0\n", "67108864\n"} {
		if !strings.Contains(p.String(), want) {
			t.Errorf("no %q in\n%s", want, p.String())
		}
	}
	dirs, _ := filepath.Glob("/sys/fs/cgroup/*" + testCgroups + "/deeper") // a parent that was asked for stays, as docker's
	for _, dir := range dirs {
		must(t, os.Remove(dir))
	}
	for what, change := range map[string]func(*pb.ExecOp){
		"invalid IP address in add-host": func(e *pb.ExecOp) { e.Meta.ExtraHosts = []*pb.HostIP{{Host: "db", IP: "nowhere"}} },
		"invalid ulimit type: moons":     func(e *pb.ExecOp) { e.Meta.Ulimit = []*pb.Ulimit{{Name: "moons"}} },
		"unable to find user nobody9":    func(e *pb.ExecOp) { e.Meta.User = "nobody9" },
		`"/bin/nothing"`:                 func(e *pb.ExecOp) { e.Meta.Args = []string{"/bin/nothing"} },
		"exit code: 5":                   func(e *pb.ExecOp) { e.Meta.Args = []string{"sh", "-c", "exit 5"} },
		"exit code: 137": func(e *pb.ExecOp) {
			e.Meta.Args = []string{"sh", "-c", "setuidgid web sh -c 'sleep 9' & kill -9 -1; kill -9 $!; exit 137"}
		},
		"secret token: not found": func(e *pb.ExecOp) { e.Secretenv = []*pb.SecretEnv{{ID: "token", Name: "TOKEN"}} },
		"no SSH key \"default\" forwarded": func(e *pb.ExecOp) {
			e.Mounts = append(e.Mounts, &pb.Mount{Dest: "/agent", MountType: pb.MountType_SSH, Input: -1, Output: -1, SSHOpt: &pb.SSHOpt{ID: "default"}})
		},
	} {
		r := h.sh("true")
		change(r.exec)
		_, out, err := h.try(r)
		if err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: %v %s", what, err, out)
		}
	}
}

func TestNetworkModes(t *testing.T) {
	h := newHost(t)
	show := "ls /sys/class/net | grep -v -E 'bonding_masters|sit0|tunl0|ip6tnl0|gre|erspan|vti|dummy|ifb'; ip route 2>/dev/null"
	r := h.sh(show)
	if _, out := h.do(r); !strings.Contains(out, "eth0") || !strings.Contains(out, "default via "+h.gateway()) {
		t.Errorf("default: %s", out)
	}
	r = h.sh(show)
	r.exec.Network = pb.NetMode_NONE
	if _, out := h.do(r); strings.Contains(out, "eth0") || !strings.Contains(out, "lo") {
		t.Errorf("none: %s", out)
	}
	r = h.sh(show)
	r.exec.Network = pb.NetMode_HOST
	if _, out := h.do(r); !strings.Contains(out, h.ground.Bridge) {
		t.Errorf("host: %s", out)
	}
}

func TestInsecure(t *testing.T) {
	h := newHost(t)
	try := "mount -t tmpfs none /tmp 2>/dev/null && echo mounted; grep Seccomp: /proc/self/status; test -w /proc/sys/kernel/msgmax && echo writes"
	r := h.sh(try)
	if _, out := h.do(r); strings.Contains(out, "mounted") || !strings.Contains(out, "Seccomp:\t2") {
		t.Error(out)
	}
	r.exec.Security = pb.SecurityMode_INSECURE
	if _, out := h.do(r); !strings.Contains(out, "mounted") || !strings.Contains(out, "Seccomp:\t0") {
		t.Error(out)
	}
}

// secrets are those of an asker.
type secrets map[string]string

func (s secrets) Secret(_ context.Context, id string) ([]byte, error) {
	if v, ok := s[id]; ok {
		return []byte(v), nil
	}
	return nil, errs.New(errs.NotFound, "no secret %s", id)
}

var _ build.Secrets = secrets{}
