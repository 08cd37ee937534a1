package proof

import (
	"bytes"
	"errors"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"corten.dev/corten/internal/enginetest"
)

// networkScript is what is said to both engines, by the same docker client. A line whose answer differs tells why that is right; one that does not differ any more must lose its reason.
var networkScript = []struct{ line, why string }{
	{"network create --subnet 10.231.1.0/24 --ip-range 10.231.1.128/25 --gateway 10.231.1.5 --aux-address host=10.231.1.9 --label a=b --attachable one", ""},
	{"network inspect -f '{{json .IPAM}} {{json .Options}} {{json .Labels}} {{.Scope}} {{.Internal}} {{.Attachable}} {{.Ingress}} {{.ConfigOnly}}' one", ""},
	{"network create one", ""},
	{"network create --subnet 10.231.1.0/25 two", "docker 20.10 said less; today's says \"invalid pool request\" first"},
	{"network create --subnet 10.231.2.0/24 --internal -o com.docker.network.driver.mtu=1400 two", ""},
	{"network inspect -f '{{.Internal}} {{json .Options}}' two", ""},
	{"network create --subnet 10.231.3.0/24 --subnet 10.231.4.0/24 three", ""},
	{"network create --subnet 10.231.3.0/24 --gateway 10.231.4.1 three", ""},
	{"network create --subnet 10.231.3.0/24 --ip-range 10.231.4.0/25 three", ""},
	{"network create --ip-range 10.231.4.0/25 three", ""},
	{"network create --subnet 10.231.3.0/32 three", ""},
	{"network create --subnet 10.231.9.7/24 four", "docker 20.10 took it for 10.231.3.0/24; today's refuses it as we do"},
	{"network create --subnet fd00:231::/64 --subnet 10.231.3.0/24 --ipv6 six", ""},
	{"network inspect -f '{{.EnableIPv6}}' six", ""},
	{"network create -o com.docker.network.bridge.enable_icc=maybe three", ""},
	{"network create -o com.docker.network.driver.mtu=abc three", ""},
	{"network create -d nosuch three", ""},
	{"network create --ipam-driver nosuch three", ""},
	{"network create -d host three", ""},
	{"network create -d null three", ""},
	{"network create bridge", ""},
	{"network create --ingress three", ""},
	{"network create --scope swarm three", ""},
	{"network create --scope nowhere three", ""},
	{"network create 'a b'", ""},
	{"network create --ipv6 auto6", "docker 20.10 had no IPv6 subnets of its own to give; today's takes a unique local one, as we do"},
	{"network create --config-only --subnet 10.231.7.0/24 --label c=d conf", ""},
	{"network inspect -f '{{json .IPAM}} {{json .Labels}} {{.Driver}} {{.ConfigOnly}}' conf", ""},
	{"network create --config-from conf fromconf", ""},
	{"network inspect -f '{{json .Labels}} {{.Driver}} {{.ConfigOnly}} {{json .ConfigFrom}}' fromconf", ""},
	{"network create --config-from nosuch three", ""},
	{"network create --config-from conf --label x=y three", ""},
	{"network create --config-from conf -o x=y three", ""},
	{"network create --config-only --config-from conf three", ""},
	{"network rm conf", ""},
	{"network rm fromconf conf", ""},
	{"network ls --format '{{.Name}} {{.Driver}} {{.Scope}}' --filter type=builtin", ""},
	{"network ls --format '{{.Name}}' --filter driver=bridge --filter name=one", ""},
	{"network ls --format '{{.Name}}' --filter label=a=b", ""},
	{"network ls --format '{{.Name}}' --filter scope=swarm", ""},
	{"network ls --filter type=nosuch", ""},
	{"network ls --filter nosuch=x", "docker 20.10 began it with a capital; today's does not"},
	{"network rm bridge", ""},
	{"network rm nosuch", ""},
	{"network rm --force nosuch", ""},
	{"network inspect nosuch", ""},
	{"create --name c1 --network one --ip 10.231.1.77 --network-alias www busybox sleep 1000", ""},
	{"network connect --alias zz two c1", ""},
	{"start c1", ""},
	{"exec c1 ls /sys/class/net", ""},
	{"exec c1 ip -o -4 address show dev eth0 | sed 's/^[0-9]*//'", ""},
	{"inspect -f '{{with .NetworkSettings.Networks.one}}{{.IPAddress}}/{{.IPPrefixLen}} {{.Gateway}} {{.MacAddress}} {{json .IPAMConfig}}{{end}}' c1", ""},
	{"network inspect -f '{{range .Containers}}{{.Name}} {{.IPv4Address}} {{.MacAddress}}{{end}}' one", ""},
	{"network connect two c1", ""},
	{"network connect nosuch c1", ""},
	{"network connect one nosuch", ""},
	{"network connect host c1", ""},
	{"network connect none c1", ""},
	{"network disconnect bridge c1", ""},
	{"network rm one", "today's docker names who is on it"},
	{"network disconnect two c1", ""},
	{"exec c1 ls /sys/class/net", ""},
	{"run --rm --network one --ip 10.231.1.77 busybox true", ""},
	{"run --rm --ip 10.231.1.78 busybox true", ""},
	{"run --rm --network host --ip 10.231.1.78 busybox true", ""},
	{"run --rm --network one --ip 10.99.0.1 busybox true", "docker 20.10 began it with a capital"},
	{"run -d --name db --expose 5432 --expose 90-92/udp -e SECRET=1 busybox sleep 1000", ""},
	{"run --rm --name app --link db:store busybox sh -c 'env | grep STORE | sort'", ""},
	{"run --rm --name app --link db busybox sh -c 'grep -w db /etc/hosts | cut -f2'", ""},
	{"run --rm --link nosuch:x busybox true", ""},
	{"run --rm --network container:db --link c1:x busybox true", ""},
	{"run -d --name p1 -p 127.0.0.1:27431-27433:80-82/udp busybox sleep 1000", ""},
	{"port p1", ""},
	{"ps --filter name=p1 --format '{{.Ports}} {{.Networks}}'", ""},
	{"run -d --name p2 -p 127.0.0.1:27431:80/udp busybox sleep 1000", ""},
	{"run --rm -p 27441-27442:80-83 busybox true", ""},
	{"rm -f c1 db p1 p2 | sort", ""},
	{"network rm one two six", ""},
	{"network prune --force --filter nosuch=x", "docker 20.10 began it with a capital; today's does not"},
}

var (
	idWord   = regexp.MustCompile(`\b[0-9a-f]{64}\b`)
	numbered = regexp.MustCompile(`\b(172|10\.2[0-2]\d)\.\d+\.\d+(\.\d+)?\b|\b[0-9a-f]{12}\b`)
)

// The same client says the same to docker.io's engine, which lives in a network namespace of its own, and to ours.
func TestNetworkCommandsAsDocker(t *testing.T) {
	p := newPeers(t, "docker", "dockerd", "ip", "sh")
	enginetest.Alone(t, "subnets in 10.231.0.0/16, host ports from 27431")
	e := enginetest.Start(t)
	sock := p.dir + "/docker.sock"
	cmd := exec.Command("sh", "-c", `ip link set lo up && exec dockerd "$@"`, "dockerd", "-H", "unix://"+sock, "--data-root", p.dir+"/docker-data", "--exec-root", p.dir+"/docker-exec",
		"--pidfile", p.dir+"/docker.pid", "--storage-driver", "vfs", "--bip", "172.31.231.1/24", "--config-file", p.dir+"/auth.json")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if err := p.daemon("unix", sock, cmd); err != nil {
		t.Skipf("dockerd does not start on this machine: %v", err)
	}
	save := exec.Command("sh", "-c", "docker -H "+e.Socket()+" save "+enginetest.Busybox+" | docker -H unix://"+sock+" load && docker -H unix://"+sock+" tag "+enginetest.Busybox+" busybox")
	save.Env = p.env
	if out, err := save.CombinedOutput(); err != nil {
		t.Fatalf("give docker the image: %v %s", err, out)
	}
	defer p.say("unix://"+sock, "ps -aq | xargs -r docker rm -f")
	for _, step := range networkScript {
		answer := make(chan string, 1)
		go func() { answer <- p.say("unix://"+sock, step.line) }()
		ours := p.say(e.Socket(), step.line)
		theirs := <-answer
		switch {
		case theirs == ours && step.why != "":
			t.Errorf("%s: the answers are the same, though %q:\n%s", step.line, step.why, ours)
		case theirs != ours && step.why == "":
			t.Errorf("%s: docker\n%s\nwe\n%s", step.line, theirs, ours)
		}
	}
}

// say runs a line of the client against an engine; what it prints, on both outputs, without ids and addresses that engines choose, and how it ends.
func (p *peers) say(host, line string) string {
	cmd := exec.CommandContext(p.t.Context(), "sh", "-c", "docker "+line)
	cmd.Env = slices.Concat(p.env, []string{"DOCKER_HOST=" + host})
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	code := "0"
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		code = exit.String()
	} else if err != nil {
		code = err.Error()
	}
	return numbered.ReplaceAllString(idWord.ReplaceAllString(strings.TrimSpace(out.String()), "ID"), "N") + "\nends: " + code
}
