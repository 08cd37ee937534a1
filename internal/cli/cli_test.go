package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write the golden files anew")

// fakeEngine answers with canned JSON on a unix socket. Keys are "METHOD /path" without version.
type fakeEngine struct {
	mu       sync.Mutex // guards requests
	requests []string
	bodies   map[string]string
	answers  map[string]string
	socket   string
}

func newFake(t *testing.T, answers map[string]string) *fakeEngine {
	t.Helper()
	dir, err := os.MkdirTemp("", "cli") // short: a socket's path has 108 bytes at most
	if err != nil {
		t.Fatal(err)
	}
	f := &fakeEngine{answers: answers, bodies: map[string]string{}, socket: filepath.Join(dir, "s")}
	l, err := net.Listen("unix", f.socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: f}
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close(); os.RemoveAll(dir) })
	t.Setenv("CORTEN_HOST", "")
	t.Setenv("DOCKER_HOST", "")
	t.Setenv("DOCKER_CONTEXT", "")
	t.Setenv("HOME", dir)
	return f
}

func (f *fakeEngine) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	_, path, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v"), "/")
	key := r.Method + " /" + path
	body, _ := io.ReadAll(r.Body)
	f.mu.Lock()
	f.requests = append(f.requests, key)
	f.bodies[key] = string(body)
	f.mu.Unlock()
	w.Header().Set("Api-Version", "1.56")
	w.Header().Set("Content-Type", "application/json")
	answer, ok := f.answers[key]
	switch {
	case key == "GET /_ping":
		io.WriteString(w, "OK")
	case !ok:
		w.WriteHeader(404)
		fmt.Fprintf(w, `{"message":"No such thing: %s"}`, path)
	case strings.HasPrefix(answer, "hijack:"):
		conn, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		io.WriteString(conn, "HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"+strings.TrimPrefix(answer, "hijack:"))
		conn.Close()
	case strings.HasPrefix(answer, "status:"):
		var code int
		var text string
		fmt.Sscanf(answer, "status:%d", &code)
		_, text, _ = strings.Cut(answer, " ")
		w.WriteHeader(code)
		fmt.Fprintf(w, `{"message":%q}`, text)
	default:
		io.WriteString(w, answer)
	}
}

// run runs a command line against the fake engine.
func (f *fakeEngine) run(stdin string, args ...string) (out, errOut string, code int) {
	var o, e bytes.Buffer
	code = Main(context.Background(), append([]string{"-H", "unix://" + f.socket}, args...), Streams{In: strings.NewReader(stdin), Out: &o, Err: &e})
	return o.String(), e.String(), code
}

func engineAnswers() map[string]string {
	old := time.Now().Add(-50 * time.Hour).Unix()
	return map[string]string{
		"GET /containers/json": fmt.Sprintf(`[{"Id":"0b442e7d9e9f3fed136e01a99fbb5bdc1943b64c22a5b02b8443a95c31c7f4c7","Names":["/web","/other/web"],"Image":"nginx:1","ImageID":"sha256:a4aa97b22daa","Command":"nginx -g 'daemon off;' and more","Created":%d,
			"Ports":[{"IP":"0.0.0.0","PrivatePort":80,"PublicPort":8080,"Type":"tcp"},{"IP":"::","PrivatePort":80,"PublicPort":8080,"Type":"tcp"},{"PrivatePort":443,"Type":"tcp"},{"PrivatePort":444,"Type":"tcp"},{"IP":"127.0.0.1","PrivatePort":53,"PublicPort":53,"Type":"udp"},{"IP":"127.0.0.1","PrivatePort":54,"PublicPort":54,"Type":"udp"}],
			"Labels":{"a.b-c":"d","x":"y"},"State":"running","Status":"Up 2 days","SizeRw":1500,"SizeRootFs":1984000,"NetworkSettings":{"Networks":{"b":{},"a":{}}},"Mounts":[{"Type":"volume","Name":"a-very-long-volume-name","Driver":"local"},{"Type":"bind","Source":"/srv"}]}]`, old),
		"GET /images/json": fmt.Sprintf(`[{"Id":"sha256:a4aa97b22daac6f4c1e8d74d2cb4f107820beb0ff44ddec619d7a2bc3f6eaef0","RepoTags":["localhost:5000/busybox:latest","b:1"],"RepoDigests":["b@sha256:0f"],"Created":%d,"Size":1984123,"Containers":-1,"SharedSize":-1},
			{"Id":"sha256:b4aa97b22daac6f4c1e8d74d2cb4f107820beb0ff44ddec619d7a2bc3f6eaef0","RepoTags":[],"RepoDigests":[],"Created":%d,"Size":1,"Containers":2,"SharedSize":1}]`, old, old),
		"GET /networks":               `[{"Name":"net10","Id":"42a7b8a7719d0000","Driver":"bridge","Scope":"local","EnableIPv4":true},{"Name":"net9","Id":"52a7b8a7719d0000","Driver":"null","Scope":"local"}]`,
		"GET /volumes":                `{"Volumes":[{"Name":"v10","Driver":"local","Mountpoint":"/m","Scope":"local","Labels":{"a":"b"}},{"Name":"v9","Driver":"local"}]}`,
		"GET /containers/web/json":    `{"Id":"0b44","Name":"/web","State":{"Status":"running","Running":true,"Pid":7},"Config":{"Tty":false,"Env":["A=<b>&c"]},"NetworkSettings":{"Ports":{"80/tcp":[{"HostIp":"0.0.0.0","HostPort":"8080"},{"HostIp":"::","HostPort":"8080"}],"443/tcp":null,"9/udp":[{"HostIp":"1.2.3.4","HostPort":"9"}]}},"New":{"Field":1}}`,
		"GET /containers/web/top":     `{"Titles":["PID","CMD"],"Processes":[["1","init"],["12345","a b"]]}`,
		"GET /containers/web/changes": `[{"Path":"/a","Kind":1},{"Path":"/b","Kind":0},{"Path":"/c","Kind":2}]`,
		"GET /images/b/history":       strings.ReplaceAll(`[{"Id":"sha256:a4aa97b22daac6f4","Created":1700000000,"CreatedBy":"/bin/sh -c #(nop)\tCMD [\"a long command that is to be cut somewhere\"]","Size":1234567,"Comment":"c"},{"Id":"<missing>","Created":1700000000,"Size":0}]`, "1700000000", fmt.Sprint(old)),
		"GET /containers/web/stats":   `{"id":"0b442e7d9e9f3fed","name":"/web","cpu_stats":{"cpu_usage":{"total_usage":300},"system_cpu_usage":2000,"online_cpus":2},"precpu_stats":{"cpu_usage":{"total_usage":100},"system_cpu_usage":1000},"memory_stats":{"usage":2097152,"limit":4194304,"stats":{"inactive_file":1048576}},"networks":{"eth0":{"rx_bytes":1500,"tx_bytes":2}},"blkio_stats":{"io_service_bytes_recursive":[{"op":"read","value":4096},{"op":"Write","value":8192}]},"pids_stats":{"current":3}}`,
		"GET /system/df":              `{"LayersSize":1984123,"Images":[{"Id":"sha256:a4","Containers":1,"Size":1984123,"SharedSize":0}],"Containers":[{"Id":"0b","State":"exited","SizeRw":10}],"Volumes":[{"Name":"v","UsageData":{"Size":5,"RefCount":0}}]}`,
		"GET /events":                 `{"status":"start","Type":"container","Action":"start","Actor":{"ID":"0b44","Attributes":{"name":"web","image":"b"}},"time":1700000000,"timeNano":1700000000123456789}` + "\n",
		"POST /containers/prune":      `{"ContainersDeleted":["0b44"],"SpaceReclaimed":1500}`,
		"POST /containers/web/stop":   ``,
		"DELETE /images/b:1":          `[{"Untagged":"b:1"},{"Deleted":"sha256:a4"}]`,
	}
}

// Each golden file is named after its command line and holds what is printed. -update writes them.
func TestGolden(t *testing.T) {
	t.Setenv("TZ", "UTC")
	f := newFake(t, engineAnswers())
	for _, line := range []string{
		"ps", "ps -q", "ps -s", "ps --no-trunc", "ps --format {{.Names}}|{{.Ports}}|{{.Mounts}}|{{.LocalVolumes}}|{{.Networks}}|{{.Labels}}",
		"ps --format table@{{.ID}}\\t{{.Label@\"a.b-c\"}}", "ps --format {{.Nothing}}", "ps --format {{.ID", "images", "images -q", "images --digests", "images --no-trunc",
		"network ls", "network ls --format json", "volume ls", "volume ls -q", "inspect web", "inspect -f {{.State.Pid}} web", "inspect -f {{.New.Field}} web", "inspect -f {{.Nothing}} web", "inspect nobody web",
		"top web", "diff web", "history b", "port web", "port web 80", "port web 81", "stats --no-stream web", "system df", "events --format {{.Action}}",
		"events --format json", "container prune -f", "stop web nobody", "rmi b:1 nobody", "run", "run --nonsense b", "run -p x b", "nonsense", "container nonsense", "ps x", "pull x", "volume", "stop --help", "run --help",
	} {
		t.Run(line, func(t *testing.T) {
			words := strings.Fields(line)
			for i := range words {
				words[i] = strings.ReplaceAll(words[i], "@", " ")
			}
			out, errOut, code := f.run("", words...)
			got := fmt.Sprintf("exit %d\n-- stdout --\n%s-- stderr --\n%s", code, out, errOut)
			name := filepath.Join("testdata", strings.Map(func(r rune) rune {
				if strings.ContainsRune(" |{}\\\"/.$@", r) {
					return '_'
				}
				return r
			}, line)+".golden")
			if *update {
				if err := os.WriteFile(name, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("got\n%s\nwant\n%s\n(go test ./internal/cli -update writes the file anew)", got, want)
			}
		})
	}
}

func stdFrame(stream byte, s string) string {
	return string([]byte{stream, 0, 0, 0, 0, 0, byte(len(s) >> 8), byte(len(s))}) + s
}

// Of our own engine a run is one request: each costs the nine milliseconds that we promise.
func TestRunTakesOneRequest(t *testing.T) {
	word := func(s string) string { return stdFrame(4, s) }
	output := stdFrame(1, "hello\n") + stdFrame(2, "oops\n")
	for _, c := range []struct {
		stream, err string
		code        int
		want        string // the requests
	}{
		{word(`{"Id":"abc","Warnings":["a warning"]}`) + output + word(`{"Code":3}`), "WARNING: a warning\noops\n", 3, "POST /containers/create"},
		{word(`{"Id":"abc"}`) + output + word(`{"Refused":409,"Message":"no"}`), "oops\ncorten: Error response from daemon: no\n\nRun 'corten run --help' for more information\n", 125, "POST /containers/create"},
		// The engine went away while the container ran; the next one knows how it ended.
		{word(`{"Id":"abc"}`) + output, "oops\n", 4, "POST /containers/create POST /containers/abc/wait"},
	} {
		f := newFake(t, map[string]string{"POST /containers/create": "hijack:" + c.stream, "POST /containers/abc/wait": `{"StatusCode":4}`})
		out, errOut, code := f.run("", "run", "busybox", "true")
		if out != "hello\n" || errOut != c.err || code != c.code || strings.Join(f.requests, " ") != c.want {
			t.Errorf("%q %q %d after %v", out, errOut, code, f.requests)
		}
	}
}

// Another engine takes the one request for an ordinary create, and the three that follow.
func TestRunTakesFourRequests(t *testing.T) {
	f := newFake(t, map[string]string{
		"POST /containers/create":     `{"Id":"abc"}`,
		"POST /containers/abc/attach": "hijack:" + stdFrame(1, "hello\n") + stdFrame(2, "oops\n"),
		"POST /containers/abc/wait":   `{"StatusCode":3}`,
		"POST /containers/abc/start":  ``,
	})
	out, errOut, code := f.run("", "run", "--rm", "busybox", "true")
	if out != "hello\n" || errOut != "oops\n" || code != 3 {
		t.Errorf("%q %q %d", out, errOut, code)
	}
	got := slices.Clone(f.requests)
	slices.Sort(got)
	if want := "POST /containers/abc/attach POST /containers/abc/start POST /containers/abc/wait POST /containers/create"; strings.Join(got, " ") != want {
		t.Error(f.requests)
	}
	if f.requests[0] != "POST /containers/create" || f.requests[3] != "POST /containers/abc/start" {
		t.Errorf("in the wrong order: %v", f.requests)
	}
}

func TestRunFailures(t *testing.T) {
	for name, c := range map[string]struct {
		create, start string
		code          int
		text          string
	}{
		"name in use":   {"status:409 Conflict. The name is in use", "", 125, "corten: Error response from daemon: Conflict. The name is in use\n\nRun 'corten run --help' for more information\n"},
		"no command":    {`{"Id":"abc"}`, `status:400 exec: "x": executable file not found in $PATH`, 127, "executable file not found"},
		"no permission": {`{"Id":"abc"}`, `status:400 exec: "x": permission denied`, 126, "permission denied"},
		"port in use":   {`{"Id":"abc"}`, `status:500 port is already allocated`, 125, "port is already allocated"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t, map[string]string{"POST /containers/create": c.create, "POST /containers/abc/start": c.start,
				"POST /containers/abc/attach": "hijack:", "POST /containers/abc/wait": `{"StatusCode":0}`})
			_, errOut, code := f.run("", "run", "busybox", "x")
			if code != c.code || !strings.Contains(errOut, c.text) {
				t.Errorf("%d %q", code, errOut)
			}
		})
	}
}

func TestRunOfAMissingImage(t *testing.T) {
	f := newFake(t, map[string]string{"POST /containers/create": "status:404 No such image: x:latest", "POST /images/create": "status:501 no pulling yet"})
	_, errOut, code := f.run("", "run", "x")
	if want := "Unable to find image 'x:latest' locally\ncorten: Error response from daemon: no pulling yet\n\nRun 'corten run --help' for more information\n"; errOut != want || code != 125 {
		t.Errorf("%d %q", code, errOut)
	}
	// One of another platform was taken for the end of it.
	f = newFake(t, map[string]string{"POST /images/create": "status:501 no pulling yet",
		"POST /containers/create": "status:404 image with reference x was found but its platform (linux/amd64) does not match the specified platform (linux/arm64)"})
	_, errOut, code = f.run("", "run", "--platform", "linux/arm64", "x")
	if !strings.Contains(errOut, "Unable to find image 'x:latest' locally\ncorten: Error response from daemon: no pulling yet\n") || code != 125 {
		t.Errorf("%d %q", code, errOut)
	}
	_, errOut, code = f.run("", "run", "--pull", "never", "x")
	if code != 125 || strings.Contains(errOut, "Unable to find") {
		t.Errorf("%d %q", code, errOut)
	}
}

// What a flag says has to arrive in the API's words.
func TestCreateRequest(t *testing.T) {
	f := newFake(t, map[string]string{"POST /containers/create": `{"Id":"abc"}`})
	cid := filepath.Join(t.TempDir(), "cid")
	args := strings.Fields("create -it --cidfile " + cid + " --name n -m 10m --cpus 1.5 -p 8080:80 -v /a:/b:ro -v /anon --mount type=tmpfs,dst=/t -e A=1 -l k=v --network name=nw,alias=x --ulimit nofile=1:2 --device /dev/null --restart on-failure:2 --health-cmd true --gpus all --add-host h:1.2.3.4 --security-opt no-new-privileges --init --read-only --stop-timeout 3 --pids-limit 9 --entrypoint e img a b")
	if _, errOut, code := f.run("", args...); code != 0 {
		t.Fatal(errOut)
	}
	var got map[string]any
	if err := json.Unmarshal([]byte(f.bodies["POST /containers/create"]), &got); err != nil {
		t.Fatal(err)
	}
	host := got["HostConfig"].(map[string]any)
	for key, want := range map[string]string{"Memory": "1.048576e+07", "NanoCpus": "1.5e+09", "Binds": "[/a:/b:ro]", "ReadonlyRootfs": "true", "Init": "true", "PidsLimit": "9",
		"PortBindings": "map[80/tcp:[map[HostIp: HostPort:8080]]]", "NetworkMode": "nw", "SecurityOpt": "[no-new-privileges]", "ExtraHosts": "[h:1.2.3.4]"} {
		if fmt.Sprint(host[key]) != want {
			t.Errorf("%s: %v, want %s", key, host[key], want)
		}
	}
	for key, want := range map[string]string{"Cmd": "[a b]", "Entrypoint": "[e]", "Tty": "true", "OpenStdin": "true", "StdinOnce": "true", "Env": "[A=1]", "StopTimeout": "3", "Volumes": "map[/anon:map[]]", "Labels": "map[k:v]"} {
		if fmt.Sprint(got[key]) != want {
			t.Errorf("%s: %v, want %s", key, got[key], want)
		}
	}
	if data, err := os.ReadFile(cid); err != nil || string(data) != "abc" {
		t.Errorf("%q %v", data, err)
	}
}

// What the client says of addresses that do not fit is what docker's says.
func TestNetworkCreateRefusals(t *testing.T) {
	f := newFake(t, map[string]string{"POST /networks/create": `{"Id":"abc"}`})
	for args, want := range map[string]string{
		"--gateway foo":                                                    "every ip-range or gateway must have a corresponding subnet",
		"--ip-range 10.67.0.0/28":                                          "every ip-range or gateway must have a corresponding subnet",
		"--aux-address a=10.67.0.1":                                        "no matching subnet for aux-address 10.67.0.1",
		"--subnet 10.66.0.0":                                               "invalid subnet 10.66.0.0: invalid CIDR block notation",
		"--subnet 10.66.0.0/24 --gateway foo":                              "no matching subnet for gateway foo",
		"--subnet 10.66.0.0/24 --ip-range foo":                             "invalid CIDR address: foo",
		"--subnet 10.66.0.0/24 --aux-address a":                            "no matching subnet for aux-address ",
		"--subnet 10.66.0.0/24,10.66.0.0/25":                               "multiple overlapping subnet configuration is not supported",
		"--subnet 10.66.0.0/24 --gateway 10.0.0.1":                         "no matching subnet for gateway 10.0.0.1",
		"--subnet 10.66.0.0/24,10.67.0.0/24 --gateway 10.66.0.1,10.66.0.2": "cannot configure multiple gateways (10.66.0.2, 10.66.0.1) for the same subnet (10.66.0.0/24)",
	} {
		out, errOut, code := f.run("", append(append([]string{"network", "create"}, strings.Fields(args)...), "x")...)
		if out != "" || errOut != want+"\n" || code != 1 {
			t.Errorf("%s: %q %q %d", args, out, errOut, code)
		}
	}
	if _, errOut, code := f.run("", "network", "create", "--label", "=", "x"); code != 125 || !strings.HasPrefix(errOut, `invalid argument "=" for "--label" flag: invalid label '=': empty name`) {
		t.Error(errOut, code)
	}
	if out, errOut, code := f.run("", "network", "create", "--gateway", "", "--subnet", "10.66.0.0/24,fd00::/64", "--gateway", "10.66.0.9,fd00::9", "x"); code != 0 {
		t.Error(out, errOut, code)
	}
}

func TestDetachKeys(t *testing.T) {
	keys, err := parseDetachKeys("ctrl-p,ctrl-q")
	if err != nil || !bytes.Equal(keys, []byte{16, 17}) {
		t.Fatal(keys, err)
	}
	for in, want := range map[string]struct {
		out      string
		detached bool
	}{"abc": {"abc", false}, "a\x10\x11b": {"a", true}, "a\x10b": {"a\x10b", false}, "\x10\x10\x11x": {"\x10", true}, "a\x10": {"a\x10", false}} {
		data, err := io.ReadAll(&escapeReader{r: strings.NewReader(in), keys: keys})
		if string(data) != want.out || (err == errDetached) != want.detached {
			t.Errorf("%q: %q %v", in, data, err)
		}
	}
	for _, bad := range []string{"ctrl-1", "ab", "ctrl-"} {
		if _, err := parseDetachKeys(bad); err == nil {
			t.Errorf("%q went through", bad)
		}
	}
}

func TestPagesAreCurrent(t *testing.T) {
	for name, text := range Pages() {
		got, err := os.ReadFile(filepath.Join("..", "..", "docs", name))
		if err != nil || string(got) != text {
			t.Errorf("docs/%s is not what the help says: run go run ./cmd/corten-docs docs (%v)", name, err)
		}
	}
}

// What is linked into the client costs every command its start. A new line here needs a measurement.
func TestLinkedPackages(t *testing.T) {
	if testing.Short() {
		t.Skip("asks the go command")
	}
	cmd := exec.Command("go", "list", "-deps", "corten.dev/corten/cmd/corten")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	out, err := cmd.Output()
	if err != nil {
		t.Skipf("no go command: %v", err)
	}
	var got []string
	for _, p := range strings.Fields(string(out)) {
		if strings.Contains(strings.SplitN(p, "/", 2)[0], ".") || p == "net/http" || p == "regexp" {
			got = append(got, p)
		}
	}
	slices.Sort(got)
	text := strings.Join(got, "\n") + "\n"
	name := filepath.Join("testdata", "linked.txt")
	if *update {
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if text != string(want) {
		t.Errorf("the client links other packages than testdata/linked.txt says; if that is meant, measure its start and run with -update\n%s", text)
	}
}

func TestCompletion(t *testing.T) {
	f := newFake(t, engineAnswers())
	for line, want := range map[string]string{
		"__complete netw": "network", "__complete network r": "rm", "__complete stop w": "web", "__complete run --restart u": "unless-stopped",
		"__complete run --netw": "--network\n--network-alias", "__complete rmi b": "b:1", "__complete pu": "pull\npush",
		"__complete run --restart=u": "--restart=unless-stopped", "__complete run --pid container:w": "container:web", "__complete run --network=container:w": "--network=container:web",
	} {
		out, _, code := f.run("", strings.Fields(line)...)
		if strings.TrimSpace(out) != want || code != 0 {
			t.Errorf("%s: %q %d", line, out, code)
		}
	}
}

// bash breaks words at : and =, so that nothing behind one was completed: no image with its tag, no --flag=value.
func TestBashCompletion(t *testing.T) {
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Skip("no bash")
	}
	var script strings.Builder
	if code := Main(t.Context(), []string{"completion", "bash"}, Streams{Out: &script, Err: io.Discard}); code != 0 {
		t.Fatal(code)
	}
	for _, c := range []struct{ line, words, want string }{
		{"corten rmi b:la", "corten rmi b : la", "rmi b:la -> latest"},
		{"corten rmi b:", "corten rmi b : ''", "rmi b: -> latest"},
		{"corten rmi b", "corten rmi b", "rmi b -> b:latest"},
		{"corten run --env=A=b --pull=m ", "corten run --env = A = b --pull = m ''", "run --env=A=b --pull=m  -> b:latest"},
		{"corten run  --pull=b:l", "corten run --pull = b : l", "run --pull=b:l -> latest"},
	} {
		answer := "b:latest"
		if strings.Contains(c.line, "--pull=b") {
			answer = "--pull=b:latest"
		}
		cmd := exec.Command(bash, "--norc", "-c", script.String()+`
corten() { shift; echo "$@" >&3; echo `+answer+`; }
COMP_LINE="$1"; COMP_WORDS=(`+c.words+`); COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
exec 3>&1
_corten 2>/dev/null 
echo "-> ${COMPREPLY[*]}"`, "bash", c.line)
		out, err := cmd.Output()
		if got := strings.ReplaceAll(strings.TrimSpace(string(out)), "\n", " "); err != nil || got != c.want {
			t.Errorf("%s: %q %v, want %q", c.line, got, err, c.want)
		}
	}
}

func TestTimes(t *testing.T) {
	now := time.Unix(1700000000, 5).UTC()
	for in, want := range map[string]string{"": "", "0": "0", "10s": "1699999990.000000005", "1700000001": "1700000001", "1700000001.5": "1700000001.5",
		"2023-11-14": "1699920000.000000000", "2023-11-14T22:13:20Z": "1700000000.000000000", "2023-11-14T22:13": "1699999980.000000000"} {
		if got, err := timeArg(in, now); got != want || err != nil {
			t.Errorf("%q: %q %v, want %q", in, got, err, want)
		}
	}
	for _, bad := range []string{"foo", "1-2", "1.x", "1.1234567890"} {
		if got, err := timeArg(bad, now); err == nil {
			t.Errorf("%q gave %q", bad, got)
		}
	}
}

// To ask for every signal took away what some do to every process: after 50 ms `run … | head` did not end any more but said that the engine had gone, Ctrl-Z did nothing, and a background job
// that reads the terminal read for ever.
func TestSignalsOfOurOwn(t *testing.T) {
	sigs := proxied()
	for _, own := range []syscall.Signal{syscall.SIGPIPE, syscall.SIGTSTP, syscall.SIGTTIN, syscall.SIGTTOU, syscall.SIGCONT, syscall.SIGCHLD, syscall.SIGURG, syscall.SIGWINCH} {
		if slices.Contains(sigs, os.Signal(own)) {
			t.Errorf("%v is asked for", own)
		}
	}
	for _, theirs := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGALRM} {
		if !slices.Contains(sigs, os.Signal(theirs)) {
			t.Errorf("%v is not passed on", theirs)
		}
	}
}

// A full disk behind `corten ps > list`, or `id=$(corten create …)`: what was to be told is lost, and the exit code said that all went well.
func TestLostOutputIsNoSuccess(t *testing.T) {
	f := newFake(t, engineAnswers())
	for _, args := range [][]string{{"ps"}, {"stop", "web"}, {"--help"}, {"completion", "bash"}, {"images", "--tree"}} {
		var errOut bytes.Buffer
		code := Main(t.Context(), append([]string{"-H", "unix://" + f.socket}, args...), Streams{In: strings.NewReader(""), Out: full{}, Err: &errOut})
		if code != 1 || errOut.String() != "write /dev/stdout: no space left on device\n" {
			t.Errorf("%v: %d %q", args, code, &errOut)
		}
	}
}

// full is a file on a full disk.
type full struct{}

func (full) Write([]byte) (int, error) {
	return 0, &os.PathError{Op: "write", Path: "/dev/stdout", Err: syscall.ENOSPC}
}
