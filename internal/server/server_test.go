package server_test

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"corten.dev/corten/internal/container"
	"corten.dev/corten/internal/engine/containers"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/filter"
	"corten.dev/corten/internal/network"
	"corten.dev/corten/internal/server"
)

func message(t *testing.T, w *httptest.ResponseRecorder) string {
	t.Helper()
	var m struct{ Message string }
	if err := json.Unmarshal(w.Body.Bytes(), &m); err != nil {
		t.Fatalf("%v: %q", err, w.Body)
	}
	return m.Message
}

func TestVersions(t *testing.T) {
	for _, c := range []struct {
		path string
		code int
		text string
	}{
		{"/_ping", 200, ""},
		{"/v1.24/_ping", 200, ""},
		{"/v1.22/_ping", 200, ""}, // skopeo 1.9, as docker-daemon:, was refused
		{"/v1.21/_ping", 400, "client version 1.21 is too old. Minimum supported API version is 1.24, please upgrade your client to a newer version"},
		{"/v1.56/_ping", 200, ""},
		{"/v1.99/_ping", 400, "client version 1.99 is too new. Maximum supported API version is 1.56"},
		{"/v2.0/_ping", 400, "client version 2.0 is too new. Maximum supported API version is 1.56"},
		{"/v1.10/_ping", 400, "client version 1.10 is too old. Minimum supported API version is 1.24, please upgrade your client to a newer version"},
		{"/v1/_ping", 400, "client version 1 is too old. Minimum supported API version is 1.24, please upgrade your client to a newer version"},
		{"/v1./_ping", 400, "client version 1. is too old. Minimum supported API version is 1.24, please upgrade your client to a newer version"},
		{"/v./_ping", 400, "client version . is too old. Minimum supported API version is 1.24, please upgrade your client to a newer version"},
		{"/v2/_ping", 400, "client version 2 is too new. Maximum supported API version is 1.56"},
		{"/v1.56.1/_ping", 400, "client version 1.56.1 is too new. Maximum supported API version is 1.56"},
		{"/v1.99999999999999999999/_ping", 400, "client version 1.99999999999999999999 is too new. Maximum supported API version is 1.56"},
		{"/v1.41.2/_ping", 200, ""},
		{"/v01.041/_ping", 200, ""},
		{"/v1.4a/_ping", 404, "page not found"},
		{"/vX/_ping", 404, "page not found"},
		{"/v/_ping", 404, "page not found"},
		{"/v1.999/nonsense", 404, "page not found"},
		{"/v1.999", 404, "page not found"},
		{"/v1.56", 404, "page not found"},
		{"/nonsense", 404, "page not found"},
		{"/", 404, "page not found"},
		{"//", 404, "page not found"},
		{"/containers", 404, "page not found"},
		{"/containers/web", 404, "page not found"},
		{"/volumes/", 200, ""},
		{"/networks/", 200, ""},
		{"/services", 503, "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" to connect this node to swarm and try again."},
		{"/images/a/b/c/json", 200, ""},
		{"/images/nosuch/json", 404, "No such image: nosuch"},
	} {
		w := do(t, &engine{}, "GET", c.path, "")
		if w.Code != c.code {
			t.Errorf("%s: status %d: %s", c.path, w.Code, w.Body)
		} else if c.text != "" && message(t, w) != c.text {
			t.Errorf("%s: %s", c.path, w.Body)
		}
	}
}

// Some proxies and libraries ask so before anything else, of any path, and take a 404 for an engine that is away.
func TestOptions(t *testing.T) {
	for _, path := range []string{"/_ping", "/v1.44/containers/json", "/nonsense"} {
		if w := do(t, &engine{}, "OPTIONS", path, ""); w.Code != 200 || w.Body.Len() > 0 {
			t.Errorf("%s: %d %q", path, w.Code, w.Body)
		}
	}
}

// There is nothing to list, which is no reason to take filters that mean nothing.
func TestPluginFilters(t *testing.T) {
	for filters, code := range map[string]int{"": 200, `{"enabled":["true"]}`: 200, `{"capability":["volumedriver"]}`: 200, `{"enabled":["maybe"]}`: 400, `{"bogus":["x"]}`: 400} {
		if w := do(t, &engine{}, "GET", "/plugins?filters="+url.QueryEscape(filters), ""); w.Code != code {
			t.Errorf("%s: %d %s", filters, w.Code, w.Body)
		}
	}
}

func TestPing(t *testing.T) {
	for _, method := range []string{"GET", "HEAD"} {
		w := do(t, &engine{}, method, "/_ping", "")
		for name, want := range map[string]string{
			"Api-Version": "1.56", "Ostype": "linux", "Docker-Experimental": "false", "Server": "Corten/1.2.3 (linux)",
			"Cache-Control": "no-cache, no-store, must-revalidate", "Swarm": "inactive",
		} {
			if got := w.Header().Get(name); got != want {
				t.Errorf("%s: %s is %q", method, name, got)
			}
		}
		if body := w.Body.String(); body != map[string]string{"GET": "OK", "HEAD": ""}[method] {
			t.Errorf("%s: %q", method, body)
		}
	}
}

func TestErrors(t *testing.T) {
	for _, c := range []struct {
		err  error
		code int
	}{
		{errs.New(errs.Invalid, "x"), 400}, {errs.New(errs.Unauthorized, "x"), 401}, {errs.New(errs.Forbidden, "x"), 403}, {errs.New(errs.NotFound, "x"), 404},
		{errs.New(errs.Conflict, "x"), 409}, {errs.New(errs.NotModified, "x"), 304}, {errs.New(errs.NotImplemented, "x"), 501}, {errs.New(errs.Unavailable, "x"), 503},
		{errs.New(errs.NoCommand, "x"), 400}, {errs.New(errs.NotExecutable, "x"), 400}, {errors.New("x"), 500}, {fmt.Errorf("a: %w", errs.New(errs.NotFound, "x")), 404},
		// What wraps says more than what was wrapped: a missing network makes a bad request, not a missing container.
		{errs.New(errs.Invalid, "a: %w", errs.New(errs.NotFound, "x")), 400},
		{errors.Join(errors.New("y"), errs.New(errs.Conflict, "x")), 409},
	} {
		w := do(t, &engine{err: c.err}, "POST", "/containers/job/pause", "")
		if w.Code != c.code {
			t.Errorf("%v: status %d", c.err, w.Code)
		}
		if c.code == 304 && w.Body.Len() > 0 {
			t.Errorf("304 with a body: %q", w.Body)
		} else if c.code != 304 && message(t, w) != c.err.Error() {
			t.Errorf("%v: %s", c.err, w.Body)
		}
	}
}

func TestBodies(t *testing.T) {
	for _, c := range []struct {
		target, body, text string
		code               int
	}{
		{"/containers/create", "", "invalid JSON: got EOF while reading request body", 400},
		{"/containers/create", "{", "invalid JSON: unexpected EOF", 400},
		{"/containers/create", "{}", "config cannot be empty in order to create a container", 400},
		{"/containers/create", "null", "config cannot be empty in order to create a container", 400},
		{"/containers/create", `{"Image":"a"} {}`, "unexpected content after JSON", 400},
		{"/containers/create", `{"Image":7}`, "invalid JSON: json: cannot unmarshal number", 400},
		{"/containers/create?name=a/b", `{"Image":"a"}`, "Invalid container name (a/b), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed", 400},
		{"/containers/create", `{"Image":"a","HostConfig":{"PortBindings":{"80/foo":[]}}}`, "protocol must be tcp, udp or sctp", 400},
		{"/containers/create", `{"Image":"a","HostConfig":{"PortBindings":{"80/tcp":[{"HostPort":"9-8"}]}}}`, `invalid port specification: "9-8"`, 400},
		{"/containers/create", `{"Image":"a","HostConfig":{"AutoRemove":true,"RestartPolicy":{"Name":"always"}}}`, "can't create 'AutoRemove' container with restart policy", 400},
		{"/containers/create", `{"Image":"a","HostConfig":{"Mounts":[{"Type":"tmpfs","Target":"/a","BindOptions":{}}]}}`, "field BindOptions must not be specified", 400},
		{"/containers/create", `{"Image":"a","HostConfig":{"CpuCount":2}}`, "settings of Windows containers", 400},
		{"/containers/create", `{"Image":"a","HostConfig":{"Umask":18}}`, "umask", 501},
		{"/containers/create", `{"Image":"a","Healthcheck":{"Interval":5}}`, "Interval in Healthcheck cannot be less than 1ms", 400},
		{"/containers/web/exec", `{}`, "No exec command specified", 400},
		{"/networks/create", `{}`, "network name cannot be empty", 400},
		{"/networks/create", `{"Name":"x","IPAM":{"Config":[{"Subnet":"10.0.0.1/24"}]}}`, "it should be 10.0.0.0/24", 400},
		{"/networks/create", `{"Name":"x","IPAM":{"Config":[{"Subnet":"10.0.0.0/24","Gateway":"10.0.1.1"}]}}`, "doesn't contain this address", 400},
		{"/networks/create", `{"Name":"x","IPAM":{"Config":[{"Subnet":"foo"}]}}`, "invalid network config:\ninvalid subnet foo: invalid CIDR block notation", 400},
		{"/networks/create", `{"Name":"x","IPAM":{"Config":[{"Subnet":"10.0.0.0/24","IPRange":"10.0.0.0","Gateway":"a","AuxiliaryAddresses":{"h":"b","g":"10.0.0.7"}},{"Subnet":"10.0.1.0/33"}]}}`,
			"invalid network config:\ninvalid ip-range 10.0.0.0: invalid CIDR block notation\ninvalid gateway a: invalid address\ninvalid auxiliary address h: invalid address\ninvalid subnet 10.0.1.0/33: invalid CIDR block notation", 400},
		{"/networks/create", `{"Name":"x","IPAM":{"Config":[{"Subnet":"10.0.0.0/24","IPRange":"10.0.0.1/16","Gateway":"fd00::1","AuxiliaryAddresses":{"h":"10.0.1.7"}}]}}`,
			"invalid network config:\ninvalid ip-range 10.0.0.1/16: CIDR block is bigger than its parent subnet 10.0.0.0/24\ninvalid ip-range 10.0.0.1/16: it should be 10.0.0.0/16\n" +
				"invalid gateway fd00::1: parent subnet is an IPv4 block\ninvalid auxiliary address h: parent subnet 10.0.0.0/24 doesn't contain this address", 400},
		{"/networks/create", `{"Name":"x","IPAM":{"Config":[{"Subnet":7}]}}`, "invalid JSON: ", 400},
		{"/networks/n/connect", `{"Container":"c","EndpointConfig":{"IPAMConfig":{"IPv4Address":"foo","IPv6Address":"10.0","LinkLocalIPs":["x"]}}}`,
			"invalid endpoint settings:\ninvalid IPv4 address: foo\ninvalid IPv6 address: 10.0\ninvalid link-local IP address: x", 400},
		{"/containers/create", `{"Image":"x","NetworkingConfig":{"EndpointsConfig":{"blue":{"IPAMConfig":{"IPv4Address":"foo"}}}}}`, "invalid endpoint settings:\ninvalid IPv4 address: foo", 400},
		{"/networks/create", `{"Name":"x","ConfigOnly":true,"Scope":"swarm"}`, "configuration network can only contain network specific fields", 403},
		{"/volumes/create", `{"Name":"a/b"}`, "includes invalid characters for a local volume name", 400},
		{"/containers/web/start", `{"Image":1}`, "non-empty request body", 400},
		{"/containers/web/wait?condition=never", "", `invalid condition: "never"`, 400},
		{"/containers/web/resize?h=a&w=1", "", "invalid resize height", 400},
		{"/containers/web/stop?t=soon", "", "not a whole number", 400},
		{"/containers/web/rename", "", "Neither old nor new names may be empty", 400},
		{"/images/create?fromImage=nosuch&tag=latest", "", "pull access denied for nosuch", 404},
		{"/images/create?fromSrc=ftp://x/y", "", "invalid address to import from", 400},
		{"/images/a/push?platform=arm64", "", "invalid platform", 400},
		{"/build", "", "without the service for builds", 501},
		{"/auth", `{"username":"u","password":"wrong"}`, "unauthorized: incorrect username or password", 401},
		{"/auth", `{"auth":"%%%"}`, "is not user:password in base64", 400},
		{"/swarm/init", "{}", "swarm mode is not part of this version", 501},
	} {
		r := httptest.NewRequest("POST", c.target, strings.NewReader(c.body))
		r.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		server.New(options(&engine{})).ServeHTTP(w, r)
		if w.Code != c.code || !strings.Contains(message(t, w), c.text) {
			t.Errorf("%s %s: %d %s", c.target, c.body, w.Code, w.Body)
		}
	}
}

func TestBodyLimits(t *testing.T) {
	w := do(t, &engine{}, "POST", "/containers/create", `{"Image":"`+strings.Repeat("a", 9<<20)+`"}`)
	if w.Code != http.StatusRequestEntityTooLarge {
		t.Errorf("a huge body: %d", w.Code)
	}
	r := httptest.NewRequest("POST", "/containers/create", strings.NewReader("Image=a"))
	r.Header.Set("Content-Type", "text/plain")
	w = httptest.NewRecorder()
	server.New(options(&engine{})).ServeHTTP(w, r)
	if w.Code != 400 || message(t, w) != "unsupported Content-Type header (text/plain): must be 'application/json'" {
		t.Errorf("a plain text body: %d %s", w.Code, w.Body)
	}
	// A page of another origin in somebody's browser must not start containers.
	r = httptest.NewRequest("POST", "/containers/job/start", nil)
	r.Header.Set("Sec-Fetch-Site", "cross-site")
	w = httptest.NewRecorder()
	server.New(options(&engine{})).ServeHTTP(w, r)
	if w.Code != http.StatusForbidden {
		t.Errorf("a cross-site request: %d", w.Code)
	}
}

// On a host with version 2 of control groups an old client's container has a namespace of them, as every other.
func TestOldRequestsOnV2(t *testing.T) {
	for v2, want := range map[bool]string{false: "host", true: ""} {
		e := &engine{}
		o := options(e)
		o.CgroupV2 = v2
		r := httptest.NewRequest("POST", "/v1.40/containers/create", strings.NewReader(`{"Image":"a"}`))
		r.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		if server.New(o).ServeHTTP(w, r); w.Code != 201 {
			t.Fatal(w.Code, w.Body)
		}
		if got := e.got("create").(containers.CreateRequest).Host.CgroupnsMode; got != want {
			t.Errorf("v2 %v: %q", v2, got)
		}
	}
}

// What an old client sends means what it meant in its time.
func TestOldRequests(t *testing.T) {
	create := func(version, body string) containers.CreateRequest {
		e := &engine{}
		if w := do(t, e, "POST", "/"+version+"/containers/create?platform=linux/arm64", body); w.Code != 201 {
			t.Fatalf("%s %s: %d %s", version, body, w.Code, w.Body)
		}
		return e.got("create").(containers.CreateRequest)
	}
	req := create("v1.24", `{"Image":"a","Cmd":"true","MacAddress":"02:42:ac:11:00:09","HostConfig":{"KernelMemory":4194304,"PidsLimit":0,"ConsoleSize":[2,3],"Annotations":{"a":"b"},
		"Mounts":[{"Type":"bind","Source":"/a","Target":"/b","BindOptions":{"NonRecursive":true,"CreateMountpoint":true}}]},
		"NetworkingConfig":{"EndpointsConfig":{"blue":{"MacAddress":"02:00:00:00:00:01","GwPriority":4}}}}`)
	if !reflect.DeepEqual(req.Config.Cmd, []string{"true"}) {
		t.Errorf("a command as one text: %q", req.Config.Cmd)
	}
	if req.Host.IpcMode != "shareable" || req.Host.CgroupnsMode != "host" || req.Host.Resources.PidsLimit != nil || req.Platform != "" {
		t.Errorf("defaults of 1.24: %+v", req.Host)
	}
	if req.Host.Resources.KernelMemory != 4194304 || req.Host.ConsoleSize != [2]uint{} || req.Host.Annotations != nil {
		t.Errorf("fields of 1.24: %+v", req.Host)
	}
	if m := req.Host.Mounts[0]; m.NonRecursive || m.CreateMountpoint || !m.ReadOnlyNonRecursive {
		t.Errorf("mount of 1.24: %+v", m)
	}
	want := map[string]container.EndpointSettings{"default": {MAC: "02:42:ac:11:00:09"}, "blue": {}}
	if !reflect.DeepEqual(req.Networks, want) {
		t.Errorf("networks of 1.24: %+v", req.Networks)
	}
	req = create("v1.56", `{"Image":"a","MacAddress":"02:42:ac:11:00:09","HostConfig":{"KernelMemory":4194304,"NetworkMode":"container:web"}}`)
	if req.Host.IpcMode != "" || req.Host.Resources.KernelMemory != 0 || req.Networks != nil || req.Platform != "linux/arm64" {
		t.Errorf("1.56: %+v", req)
	}
}

func TestPruneVolumesByVersion(t *testing.T) {
	for version, want := range map[string]filter.Args{"v1.41": {"all": {"true"}}, "v1.42": nil} {
		e := &engine{}
		do(t, e, "POST", "/"+version+"/volumes/prune", "")
		if got := e.got("prune").(filter.Args); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %v", version, got)
		}
	}
}

func TestNetworkCreate(t *testing.T) {
	e := &engine{}
	w := do(t, e, "POST", "/v1.47/networks/create", `{"Name":"x","Driver":"bridge","EnableIPv4":false,"IPAM":{"Config":[{"Subnet":"10.0.0.0/24","AuxiliaryAddresses":{"a":"10.0.0.7"}}]}}`)
	if w.Code != 201 {
		t.Fatal(w.Code, w.Body)
	}
	if nw := e.got("network").(network.Network); !nw.EnableIPv4 || len(nw.IPAM.Pools) != 1 || nw.IPAM.Pools[0].Aux["a"].String() != "10.0.0.7" {
		t.Errorf("%+v", nw)
	}
}

// Raw connections: what the header of a hijack looks like, and that bytes that came with the request are not lost.
func TestHijackHeaders(t *testing.T) {
	sock := serve(t, &engine{})
	for _, c := range []struct{ path, upgrade, want string }{
		{"/v1.50/containers/web/attach?stream=1", "Connection: Upgrade\r\nUpgrade: tcp\r\n",
			"HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.multiplexed-stream\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"},
		{"/v1.41/containers/web/attach?stream=1", "", "HTTP/1.1 200 OK\r\nContent-Type: application/vnd.docker.raw-stream\r\n\r\n"},
		{"/v1.50/containers/job/attach?stream=1", "", "HTTP/1.1 200 OK\r\nContent-Type: application/vnd.docker.raw-stream\r\n\r\n"},
	} {
		conn, err := net.Dial("unix", sock)
		if err != nil {
			t.Fatal(err)
		}
		// Stdin comes in the same packet as the request, as it does from a client in a hurry.
		fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: docker\r\n%s\r\nearly bye", c.path, c.upgrade)
		b, err := io.ReadAll(conn)
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
		if !strings.HasPrefix(string(b), c.want) {
			t.Errorf("%s: got %q", c.path, b)
		}
		if !strings.HasSuffix(string(b), "early bye") {
			t.Errorf("%s: what came early is lost: %q", c.path, b)
		}
	}
}

// The headers of wait come when the wait has begun, not when it ends: clients start the container between the two.
func TestWaitHeadersAtOnce(t *testing.T) {
	sock := serve(t, &engine{})
	conn, err := net.Dial("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "POST /v1.30/containers/web/wait HTTP/1.1\r\nHost: docker\r\n\r\n")
	if err := conn.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil || !strings.HasPrefix(line, "HTTP/1.1 200") {
		t.Errorf("%q %v", line, err)
	}
}

// Load answers while the archive still comes in, and an error after that is a message.
func TestLoadIsDuplex(t *testing.T) {
	sock := serve(t, &engine{})
	conn, err := net.Dial("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(conn, "POST /images/load?quiet=0 HTTP/1.1\r\nHost: docker\r\nTransfer-Encoding: chunked\r\n\r\n")
	r := bufio.NewReader(conn)
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	if !resp.Close { // an archive that was refused before its end: net/http panicked at the next request
		t.Error("the connection would be used again")
	}
	dec := json.NewDecoder(resp.Body)
	var m struct {
		ID, Status, Progress, Error string
		ErrorDetail                 struct{ Message string }
	}
	if err := dec.Decode(&m); err != nil || m.ID != "aaaa" || !strings.Contains(m.Progress, "1B/2B") {
		t.Fatalf("%+v %v", m, err)
	}
	fmt.Fprint(conn, "6\r\nbroken\r\n0\r\n\r\n")
	if err := dec.Decode(&m); err != nil || m.ErrorDetail.Message != "read the archive: broken" || m.Error != m.ErrorDetail.Message {
		t.Errorf("%+v %v", m, err)
	}
}

func TestCompressedArchive(t *testing.T) {
	var buf bytes.Buffer
	z := gzip.NewWriter(&buf)
	io.WriteString(z, "tar")
	z.Close()
	e := &engine{}
	w := do(t, e, "PUT", "/containers/web/archive?path=/tmp", buf.String())
	if w.Code != 200 || e.got("extract").([]any)[1] != "tar" {
		t.Errorf("%d %v", w.Code, e.got("extract"))
	}
	if w := do(t, e, "PUT", "/containers/web/archive?path=/tmp", "\xfd7zXZ\x00"); w.Code != 400 {
		t.Errorf("xz: %d", w.Code)
	}
}

func TestEventTypes(t *testing.T) {
	for _, c := range []struct{ version, accept, want, before string }{
		{"1.51", "application/json-seq", "application/json", "{"},
		{"1.52", "", "application/json", "{"},
		{"1.52", "application/json-seq", "application/json-seq", "\x1e{"},
		{"1.52", "text/html, application/x-ndjson;q=0.9", "application/x-ndjson", "{"},
		{"1.52", "application/jsonl", "application/json", "{"},
		{"1.53", "application/jsonl", "application/jsonl", "{"},
	} {
		r := httptest.NewRequest("GET", "/v"+c.version+"/events?until=1", nil)
		r.Header.Set("Accept", c.accept)
		w := httptest.NewRecorder()
		server.New(options(&engine{})).ServeHTTP(w, r)
		if got := w.Header().Get("Content-Type"); got != c.want || !strings.HasPrefix(w.Body.String(), c.before) {
			t.Errorf("%+v: %s %q", c, got, w.Body)
		}
	}
	if w := do(t, &engine{}, "GET", `/events?filters={"nosuch":["x"]}`, ""); w.Code != 400 {
		t.Errorf("an unknown filter: %d", w.Code)
	}
	if w := do(t, &engine{}, "GET", "/events?since=20&until=10", ""); w.Code != 400 {
		t.Errorf("since after until: %d", w.Code)
	}
}

// Shutdown ends answers without an end, so that an engine can be replaced while somebody watches it.
func TestShutdownEndsStreams(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := server.New(options(&engine{}))
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	resp, err := http.Get("http://" + l.Addr().String() + "/events")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := s.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestListen(t *testing.T) {
	dir, err := os.MkdirTemp("", "srv")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := dir + "/s"
	l, err := server.Listen("unix://"+path, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("mode %v %v", info.Mode(), err)
	}
	if _, err := server.Listen("unix://"+path, "", nil); !errors.Is(err, errs.Conflict) {
		t.Errorf("a second engine on the same socket: %v", err)
	}
	// A killed engine leaves its socket; the next one takes the place. The first listener must then not remove the new socket.
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	old, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	old.SetUnlinkOnClose(false)
	old.Close()
	l, err = server.Listen("unix://"+path, "0", nil)
	if err != nil {
		t.Fatalf("a stale socket: %v", err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Error("a file that is not our socket was removed")
	}
	if _, err := server.Listen("unix://"+path, "", nil); !errors.Is(err, errs.Conflict) {
		t.Errorf("a file in place of the socket: %v", err)
	}
	for _, host := range []string{"unix://", "unix://relative", "npipe://x", "tcp://", "tcp://a/b", "fd://"} {
		if l, err := server.Listen(host, "", nil); err == nil {
			l.Close()
			t.Errorf("%s was accepted", host)
		}
	}
	tcp, err := server.Listen("tcp://127.0.0.1:0", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	tcp.Close()
	if _, err := server.Listen("unix://"+dir+"/t", "no-such-group", nil); !errors.Is(err, errs.NotFound) {
		t.Errorf("an unknown group: %v", err)
	}
}
