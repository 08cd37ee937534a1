package proof

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"corten.dev/corten/internal/enginetest"
	"corten.dev/corten/internal/logs/shiptest"
)

// said is what the container of these tests says, with a second between its halves for --since.
const said = `echo one; echo two >&2; sleep 1.1; echo three; echo four`

// logOf checks every way of reading a log back.
func logOf(t *testing.T, e *enginetest.Engine, name string) {
	t.Helper()
	logs := func(args ...string) string { return e.Corten(append(append([]string{"logs"}, args...), name)...) }
	same := func(what, got, want string) {
		t.Helper()
		if got != want {
			t.Errorf("%s: logs %s: got %q, want %q", name, what, got, want)
		}
	}
	out := e.Client("logs", name)
	both, err := out.Output()
	if err != nil {
		t.Fatal(err)
	}
	same("(stdout)", string(both), "one\nthree\nfour\n")
	same("-f", logs("-f"), "one\nthree\nfour")
	same("--tail 1", logs("--tail", "1"), "four")
	stamps := strings.Split(logs("-t"), "\n")
	third, _, _ := strings.Cut(stamps[1], " ")
	if _, err := time.Parse(time.RFC3339Nano, third); err != nil {
		t.Errorf("%s: -t: %v", name, err)
	}
	same("--since", logs("--since", third), "three\nfour")
	first, _, _ := strings.Cut(stamps[0], " ")
	same("--until", logs("--until", first), "one")
	same("--details", logs("--details", "--tail", "1"), "FOO=x+y,b=v,tag=t-"+name+" four")
	if docker, err := exec.LookPath("docker"); err == nil {
		cmd := exec.Command(docker, "-H", e.Socket(), "logs", "--details", name)
		cmd.Env = []string{"HOME=" + e.Dir, "PATH=" + os.Getenv("PATH")}
		got, err := cmd.Output()
		if want := strings.ReplaceAll("X one\nX three\nX four\n", "X", "FOO=x+y,b=v,tag=t-"+name); err != nil || string(got) != want {
			t.Errorf("%s: docker logs --details: got %q %v, want %q", name, got, err, want)
		}
	}
}

// destinations is what inspect says of them, by driver.
func destinations(t *testing.T, e *enginetest.Engine, name string) map[string]struct {
	State               string
	Error               string
	Sent, Lost, Refused int
} {
	t.Helper()
	type destination = struct {
		State               string
		Error               string
		Sent, Lost, Refused int
	}
	var all []struct {
		LogDestinations []struct {
			Driver string
			destination
		}
	}
	if err := json.Unmarshal([]byte(e.Corten("inspect", name)), &all); err != nil || len(all) != 1 {
		t.Fatal(err)
	}
	by := map[string]destination{}
	for _, d := range all[0].LogDestinations {
		by[d.Driver] = d.destination
	}
	return by
}

// A log can be read back whatever driver it goes to, and to several it goes at once.
func TestLogsOfEveryDriver(t *testing.T) {
	sys, fluent, graylog := shiptest.Listen(t, "tcp", "", nil), shiptest.Listen(t, "tcp", "", nil), shiptest.Listen(t, "udp", "", nil)
	e := enginetest.Start(t)
	opts := map[string][]string{
		"json-file": nil, "local": {"compress=true"}, "syslog": {"syslog-address=tcp://" + sys.Address, "syslog-format=rfc5424"}, "fluentd": {"fluentd-address=" + fluent.Address},
		"gelf": {"gelf-address=udp://" + graylog.Address, "gelf-compression-type=none"}, "json-file,syslog,gelf": {"syslog-address=tcp://" + sys.Address, "gelf-address=udp://" + graylog.Address, "max-file=3"},
	}
	for driver, own := range opts {
		name := strings.ReplaceAll(driver, ",", "-")
		args := []string{"run", "-d", "--network", "none", "--name", name, "--log-driver", driver, "-e", "FOO=x y", "-l", "b=v", "--log-opt", "env=FOO", "--log-opt", "labels=b", "--log-opt", "tag=t-{{.Name}}"}
		for _, o := range own {
			args = append(args, "--log-opt", o)
		}
		e.Corten(append(args, enginetest.Busybox, "sh", "-c", said)...)
	}
	for driver := range opts {
		name := strings.ReplaceAll(driver, ",", "-")
		e.Corten("wait", name)
		logOf(t, e, name)
		if got := e.Corten("inspect", "-f", "{{.HostConfig.LogConfig.Type}}", name); got != driver {
			t.Errorf("inspect says driver %s of %s", got, driver)
		}
		for _, d := range strings.Split(driver, ",") {
			if d != "local" {
				shiptest.Eventually(t, driver+": all at "+d, func() bool { st := destinations(t, e, name)[d]; return st.State == "idle" && st.Sent == 4 })
			}
		}
	}
	for what, b := range map[string][]byte{"syslog": sys.Bytes(), "fluentd": fluent.Bytes()} {
		for _, line := range []string{"one", "two", "three", "four"} {
			if n := strings.Count(string(b), line); what == "syslog" && n != 2 || what == "fluentd" && n != 1 {
				t.Errorf("%s has %q %d times", what, line, n)
			}
		}
	}
	shiptest.Eventually(t, "eight messages in graylog", func() bool { return len(graylog.Datagrams()) == 8 })
	for _, name := range []string{"json-file", "json-file-syslog-gelf"} {
		raw, err := os.ReadFile(e.Corten("inspect", "-f", "{{.LogPath}}", name))
		want := regexp.MustCompile(`^\{"log":"one\\n","stream":"stdout","attrs":\{"FOO":"x y","b":"v","tag":"t-` + name + `"\},"time":"[^"]+Z"\}\n(.*\n){3}$`)
		if err != nil || !want.Match(raw) {
			t.Errorf("%s: %v %s", name, err, raw)
		}
	}
	// The names that clients go by.
	e.Corten("run", "-d", "--name", "plain", "--network", "none", enginetest.Busybox, "echo", "x")
	if got := e.Corten("inspect", "-f", "{{.HostConfig.LogConfig.Type}}", "plain"); got != "json-file" {
		t.Errorf("a container without a driver has %s", got)
	}
	if got := e.Corten("info", "-f", "{{.LoggingDriver}} {{.Plugins.Log}}"); got != "json-file [fluentd gelf journald json-file local none syslog]" {
		t.Errorf("info: %s", got)
	}
	refusedLogs(t, e)
}

func refusedLogs(t *testing.T, e *enginetest.Engine) {
	t.Helper()
	nobody := enginetest.Addr(t)
	for text, args := range map[string][]string{
		"configured logging driver does not support reading":                                        {"logs", "mute"},
		"logger: no log driver named 'splunk' is registered":                                        {"create", "--log-driver", "splunk", enginetest.Busybox},
		"unknown log opt 'foo' for syslog log driver":                                               {"create", "--log-driver", "syslog", "--log-opt", "foo=bar", enginetest.Busybox},
		"failed to initialize logging driver: dial tcp " + nobody + ": connect: connection refused": {"run", "--rm", "--log-driver", "syslog", "--log-opt", "syslog-address=tcp://" + nobody, enginetest.Busybox, "true"},
		"failed to initialize logging driver: gelf: cannot connect to GELF endpoint: " + nobody:     {"run", "--rm", "--log-driver", "gelf", "--log-opt", "gelf-address=tcp://" + nobody, enginetest.Busybox, "true"},
		"failed to create task for container: failed to initialize logging driver: dial tcp":        {"run", "--rm", "--log-driver", "json-file,fluentd", "--log-opt", "fluentd-address=" + nobody, enginetest.Busybox, "true"},
	} {
		if args[0] == "logs" {
			e.Corten("run", "-d", "--name", "mute", "--network", "none", "--log-driver", "none", enginetest.Busybox, "echo", "x")
		}
		if out, err := e.Try(args...); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("%q: got %v %s, want %s", args, err, out, text)
		}
	}
}

// jsonLines are the texts in a container's JSON files, the oldest first.
func jsonLines(t *testing.T, path string) (lines []string) {
	t.Helper()
	for n := 9; n >= 0; n-- {
		name := path
		if n > 0 {
			name = fmt.Sprintf("%s.%d", path, n)
		}
		f, err := os.Open(name)
		if err != nil {
			continue
		}
		for s := bufio.NewScanner(f); s.Scan(); {
			var l struct{ Log string }
			if err := json.Unmarshal(s.Bytes(), &l); err != nil {
				t.Errorf("%s: %v: %q", name, err, s.Text())
			}
			lines = append(lines, strings.TrimSpace(l.Log))
		}
		f.Close()
	}
	return lines
}

// Engines are killed and the receiver cuts its connections while a container talks: the file has every line once, the receiver every line at least once, and in order.
func TestKillWhileLogsAreHandedOn(t *testing.T) {
	r := shiptest.Listen(t, "tcp", "", nil)
	e := enginetest.Start(t)
	const lines = 3000
	e.Corten("run", "-d", "--name", "talker", "--network", "none", "--log-driver", "local,json-file,syslog", "--log-opt", "json-file.max-size=40k", "--log-opt", "max-file=10", "--log-opt", "local.max-size=10m",
		"--log-opt", "syslog-address=tcp://"+r.Address, enginetest.Busybox, "sh", "-c", fmt.Sprintf(`i=0; while [ $i -lt %d ]; do i=$((i+1)); echo "line $i."; [ $((i %% 20)) -ne 0 ] || sleep 0.02; done`, lines))
	for k := range 4 {
		have := len(r.Bytes())
		shiptest.Eventually(t, "more lines to arrive", func() bool { return len(r.Bytes()) > have+2000 || strings.Contains(string(r.Bytes()), "line 3000.") })
		if k == 2 {
			r.Drop()
		}
		e.Kill9()
		e.Up()
	}
	e.Corten("wait", "talker")
	shiptest.Eventually(t, "everything to be handed on", func() bool {
		d := destinations(t, e, "talker")
		return d["json-file"].State == "idle" && d["syslog"].State == "idle"
	})
	got := jsonLines(t, e.Corten("inspect", "-f", "{{.LogPath}}", "talker"))
	for i := range lines {
		if i >= len(got) || got[i] != fmt.Sprintf("line %d.", i+1) {
			t.Fatalf("json-file: line %d of %d is not there once and in order", i+1, len(got))
		}
	}
	next := 1
	for _, m := range regexp.MustCompile(`line (\d+)\.\n`).FindAllStringSubmatch(string(r.Bytes()), -1) {
		var n int
		fmt.Sscan(m[1], &n)
		if n > next {
			t.Fatalf("syslog: line %d came before line %d", n, next)
		}
		if n == next {
			next++
		}
	}
	if next != lines+1 {
		t.Errorf("syslog: line %d never came", next)
	}
}

// A receiver that takes nothing stops neither the container nor its removal; what the log's bound took meanwhile is counted.
func TestReceiverThatTakesNothing(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0") // it accepts, and never reads
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	e := enginetest.Start(t)
	e.Corten("run", "-d", "--name", "talker", "--network", "none", "--log-driver", "syslog", "--log-opt", "syslog-address=tcp://"+l.Addr().String(), enginetest.Busybox,
		"sh", "-c", "head -c 1000000 /dev/zero | tr '\\0' '\\n' | sed 's/$/xxxxxxx/'")
	if code := e.Corten("wait", "talker"); code != "0" { // with full pipes it would never end
		t.Errorf("exit %s", code)
	}
	if n := e.Corten("logs", "--tail", "1", "talker"); n != "xxxxxxx" {
		t.Errorf("its log ends with %q", n)
	}
	begin := time.Now()
	e.Corten("rm", "talker")
	if d := time.Since(begin); d > time.Minute {
		t.Errorf("removing it took %v", d)
	}
	shiptest.Eventually(t, "word of what was lost with it", func() bool { return strings.Contains(e.Log(), "removed before its log's destination had everything") })

	addr := enginetest.Addr(t)
	e.Corten("run", "-d", "--name", "late", "--network", "none", "--log-driver", "fluentd", "--log-opt", "fluentd-address="+addr, "--log-opt", "fluentd-async=true", "--log-opt", "fluentd-retry-wait=20ms",
		"--log-opt", "cache-max-size=100k", "--log-opt", "cache-max-file=2", enginetest.Busybox, "seq", "100000")
	e.Corten("wait", "late")
	shiptest.Eventually(t, "the destination to be called away", func() bool { return destinations(t, e, "late")["fluentd"].State == "away" })
	shiptest.Listen(t, "tcp", addr, nil)
	shiptest.Eventually(t, "the rest to arrive", func() bool { return destinations(t, e, "late")["fluentd"].State == "idle" })
	if st := destinations(t, e, "late")["fluentd"]; st.Lost == 0 || st.Sent == 0 || st.Lost+st.Sent != 100000 {
		t.Errorf("%+v", st)
	}
	shiptest.Eventually(t, "word of the lines that were lost", func() bool { return strings.Contains(e.Log(), "dropped by its bound") })
}

// A policy restarts a container whose destination is away; what all its runs said arrives when that is back. A person's start fails meanwhile.
func TestRestartWhileTheDestinationIsAway(t *testing.T) {
	addr := enginetest.Addr(t)
	first := shiptest.Listen(t, "tcp", addr, nil)
	e := enginetest.Start(t)
	e.Corten("run", "-d", "--name", "phoenix", "--network", "none", "--restart", "on-failure:2", "--log-driver", "gelf", "--log-opt", "gelf-address=tcp://"+addr, "--log-opt", "gelf-tcp-reconnect-delay=1",
		enginetest.Busybox, "sh", "-c", "echo run; while [ ! -e /go ]; do sleep 0.05; done; exit 1")
	shiptest.Eventually(t, "its first run", func() bool { return strings.Count(string(first.Bytes()), `"run"`) == 1 })
	first.Close()
	e.Corten("exec", "phoenix", "touch", "/go")
	shiptest.Eventually(t, "its last run", func() bool {
		return e.Corten("inspect", "-f", "{{.State.Status}} {{.RestartCount}}", "phoenix") == "exited 2"
	})
	if out, err := e.Try("start", "phoenix"); err == nil || !strings.Contains(err.Error(), "failed to initialize logging driver") {
		t.Errorf("%v %s", err, out)
	}
	second := shiptest.Listen(t, "tcp", addr, nil)
	shiptest.Eventually(t, "the other runs", func() bool { return strings.Count(string(second.Bytes()), `"run"`) >= 2 })
}

// The engine's own default, a container that goes with its end, and a log that is kept nowhere here.
func TestLogsByDefault(t *testing.T) {
	r := shiptest.Listen(t, "unixgram", "", nil)
	e := enginetest.Start(t, "--log-driver", "syslog", "--log-opt", "syslog-address=unixgram://"+r.Address, "--log-opt", "cache-disabled=true", "--log-opt", "tag={{.Name}}")
	if got := e.Corten("info", "-f", "{{.LoggingDriver}}"); got != "syslog" {
		t.Errorf("info: %s", got)
	}
	e.Corten("run", "--rm", "--name", "brief", "--network", "none", enginetest.Busybox, "seq", "500")
	shiptest.Eventually(t, "what was said by a container that is gone", func() bool { return len(r.Datagrams()) == 500 })
	if last := string(r.Datagrams()[499]); !regexp.MustCompile(`^<30>.* brief\[\d+\]: 500\n$`).MatchString(last) {
		t.Errorf("the last is %q", last)
	}
	e.Corten("run", "-d", "--name", "own", "--network", "none", "--log-opt", "cache-max-size=20k", "--log-opt", "cache-max-file=5", "--log-opt", "tag=mine", enginetest.Busybox, "seq", "20000")
	e.Corten("wait", "own")
	shiptest.Eventually(t, "all of it", func() bool { return destinations(t, e, "own")["syslog"].State == "idle" && len(r.Datagrams()) == 20500 })
	if last := string(r.Datagrams()[len(r.Datagrams())-1]); !strings.Contains(last, " mine[") || strings.Contains(e.Corten("inspect", "own"), `"tag": "{{.Name}}"`) {
		t.Errorf("its own option: %q", last)
	}
	if out, err := e.Try("logs", "own"); err == nil || !strings.Contains(err.Error(), "configured logging driver does not support reading") {
		t.Errorf("%v %s", err, out)
	}
	files, err := filepath.Glob(filepath.Join(e.Dir, "d/containers", e.Corten("inspect", "-f", "{{.Id}}", "own"), "log/*.log"))
	if err != nil || len(files) != 1 {
		t.Errorf("kept although everybody has it: %q %v", files, err)
	}
	// Another driver takes none of the default's options.
	e.Corten("run", "--network", "none", "--name", "other", "--log-driver", "json-file", enginetest.Busybox, "echo", "x")
	if got := e.Corten("inspect", "-f", "{{json .HostConfig.LogConfig.Config}}", "other"); got != "{}" {
		t.Errorf("options of another driver: %s", got)
	}
}

// A log plugin is found in the usual folders, gets what the container says, and again after it and the engine were away.
func TestLogPlugin(t *testing.T) {
	e := enginetest.Start(t)
	l := shiptest.NewLogger(t, e.Plugins())
	e.Corten("run", "-d", "--name", "talker", "--network", "none", "--log-driver", "json-file,logger", "--log-opt", "logger.speed=7", enginetest.Busybox, "sh", "-c", "i=0; while [ $i -lt 200 ]; do i=$((i+1)); echo line $i.; sleep 0.01; done")
	shiptest.Eventually(t, "lines to arrive", func() bool { return strings.Contains(l.Said(), "line 20.") })
	e.Kill9()
	e.Up()
	shiptest.Eventually(t, "the next engine to come to the plugin", func() bool { return len(l.Started()) == 2 })
	l.HangUp()
	e.Corten("wait", "talker")
	shiptest.Eventually(t, "everything to be handed on", func() bool { return destinations(t, e, "talker")["logger"].State == "idle" })
	said := l.Said()
	for i := range 200 {
		if !strings.Contains(said, fmt.Sprintf("3=line %d.", i+1)) {
			t.Errorf("line %d never came", i+1)
		}
	}
	if n := len(l.Started()); n < 2 || l.Started()[0]["Info"].(map[string]any)["Config"].(map[string]any)["speed"] != "7" {
		t.Errorf("started %d times: %v", n, l.Started())
	}
	if got := e.Corten("info", "-f", "{{.Plugins.Log}}"); got != "[fluentd gelf journald json-file local none syslog logger]" {
		t.Errorf("info: %s", got)
	}
	l.Refuse("not today")
	if out, err := e.Try("run", "--rm", "--network", "none", "--log-driver", "logger", enginetest.Busybox, "true"); err == nil || !strings.Contains(err.Error(), "failed to initialize logging driver: error creating logger: logger: ") {
		t.Errorf("%v %s", err, out)
	}
}
