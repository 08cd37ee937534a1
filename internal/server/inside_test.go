package server

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	wirenet "github.com/moby/moby/api/types/network"
)

// sink is a connection that keeps what is written.
type sink struct {
	net.Conn
	got bytes.Buffer
}

func (s *sink) Write(p []byte) (int, error) { return s.got.Write(p) }

// Frames arrive in any pieces; the websocket must get the payload alone, whatever the cut.
func TestWebsocketUnframes(t *testing.T) {
	var framed []byte
	for i, text := range []string{"hello", "", "w", "orld"} {
		framed = append(framed, frame(byte(i%2+1), text)...)
	}
	for cut := 1; cut <= len(framed); cut++ {
		s := &sink{}
		c := &wsConn{Conn: s, framed: true}
		for rest := framed; len(rest) > 0; {
			n := min(cut, len(rest))
			if _, err := c.Write(rest[:n]); err != nil {
				t.Fatal(err)
			}
			rest = rest[n:]
		}
		if s.got.String() != "helloworld" {
			t.Fatalf("cut at %d: %q", cut, s.got.String())
		}
	}
}

// A fast source and a slow one: nothing lost, nothing out of order, and a lone line arrives without being pushed by another.
func TestStream(t *testing.T) {
	arrived := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		st := startStream(w, "text/plain")
		defer st.Close()
		io.WriteString(st, "alone\n")
		<-arrived
		var b [8]byte
		for i := range uint64(200000) {
			binary.BigEndian.PutUint64(b[:], i)
			if _, err := st.Write(b[:]); err != nil {
				t.Error(err)
				return
			}
		}
	}))
	defer srv.Close()
	resp, err := http.Get(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	line := make([]byte, 6)
	if _, err := io.ReadFull(resp.Body, line); err != nil || string(line) != "alone\n" {
		t.Fatalf("%q %v", line, err)
	}
	close(arrived)
	all, err := io.ReadAll(resp.Body)
	if err != nil || len(all) != 8*200000 {
		t.Fatal(len(all), err)
	}
	for i := range uint64(200000) {
		if binary.BigEndian.Uint64(all[8*i:]) != i {
			t.Fatalf("number %d is out of place", i)
		}
	}
}

// A client that leaves ends the source: its next write fails, instead of waiting for ever.
func TestStreamClientLeaves(t *testing.T) {
	ended := make(chan error, 1)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		st := startStream(w, "text/plain")
		block := make([]byte, 64<<10)
		for {
			if _, err := st.Write(block); err != nil {
				ended <- err
				st.Close()
				return
			}
		}
	}))
	defer srv.Close()
	ctx, cancel := context.WithCancel(context.Background())
	req, _ := http.NewRequestWithContext(ctx, "GET", srv.URL, nil)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	resp.Body.Close()
	select {
	case <-ended:
	case <-time.After(time.Minute):
		t.Fatal("the source still writes")
	}
}

func TestMoment(t *testing.T) {
	now := time.Unix(1000, 0)
	for text, want := range map[string]time.Time{
		"": {}, "0": {}, "12": time.Unix(12, 0), "12.5": time.Unix(12, 5e8), "12.000000007": time.Unix(12, 7), "1m": now.Add(-time.Minute),
		"2026-01-02T03:04:05Z": time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), "2026-01-02": time.Date(2026, 1, 2, 0, 0, 0, 0, time.Local),
	} {
		if got, err := (form{"t": {text}}).moment("t", now); err != nil || !got.Equal(want) {
			t.Errorf("%q: %v %v", text, got, err)
		}
	}
	for text, want := range map[string]time.Time{"": {}, "0": time.Unix(0, 0), "12": time.Unix(12, 0)} {
		if got, err := (form{"t": {text}}).instant("t", now); err != nil || !got.Equal(want) {
			t.Errorf("instant %q: %v %v", text, got, err)
		}
	}
	for _, text := range []string{"x", "1.-5", "1.x", "99999999999999999999"} {
		if got, err := (form{"t": {text}}).moment("t", now); err == nil {
			t.Errorf("%q: %v", text, got)
		}
	}
}

// Whatever bytes come as a body: a request or a refusal, and a request that was accepted can be shown by inspect.
func FuzzBodies(f *testing.F) {
	for _, seed := range []string{
		`{"Image":"a","Cmd":"x","HostConfig":{"Binds":["/a:/b:ro"],"PortBindings":{"80/tcp":[{"HostIp":"::","HostPort":"1-2"}]},"Mounts":[{"Type":"volume","Target":"/x"}]}}`,
		`{"Image":"a","NetworkingConfig":{"EndpointsConfig":{"n":{"IPAMConfig":{"IPv4Address":"1.2.3.4"},"MacAddress":"02:00:00:00:00:01"},"m":null}}}`,
		`{"Memory":1,"RestartPolicy":{"Name":"always"},"BlkioWeightDevice":[null]}`,
		`{"Cmd":["a"],"ConsoleSize":[1,2],"Tty":true}`,
		`{"Name":"n","IPAM":{"Config":[{"Subnet":"10.0.0.0/8","IPRange":"10.1.0.0/16","Gateway":"10.0.0.1"}]}}`,
		`null`, `[]`, `{"Healthcheck":{"Test":null,"Interval":-1}}`,
	} {
		for _, version := range []int{24, 56} {
			f.Add([]byte(seed), version)
		}
	}
	s := New(Options{})
	f.Fuzz(func(t *testing.T, body []byte, version int) {
		version = minVersion + max(version, -version, 0)%(maxVersion-minVersion+1)
		if version < minVersion {
			return
		}
		var create createBody
		if err := decodeJSON(bytes.NewReader(body), &create); err == nil {
			if req, _, err := s.toCreate(create, version); err == nil {
				if _, err := json.Marshal(fromHost(req.Host, version)); err != nil {
					t.Errorf("accepted, but cannot be shown: %v", err)
				}
				if _, err := json.Marshal(fromConfig(req.Config)); err != nil {
					t.Errorf("accepted, but cannot be shown: %v", err)
				}
			}
		}
		var upd updateBody
		if err := decodeJSON(bytes.NewReader(body), &upd); err == nil {
			_, _ = toUpdate(upd, version)
		}
		var ex execBody
		if err := decodeJSON(bytes.NewReader(body), &ex); err == nil {
			if req, err := toExec(ex, version); err == nil && len(req.Cmd) == 0 {
				t.Error("an exec without a command")
			}
		}
		var nw wirenet.CreateRequest
		if err := decodeJSON(bytes.NewReader(body), &nw); err == nil {
			if made, err := toNetwork(nw); err == nil {
				if _, err := json.Marshal(fromNetwork(made)); err != nil {
					t.Errorf("accepted, but cannot be shown: %v", err)
				}
			}
		}
	})
}

func BenchmarkRoute(b *testing.B) {
	s := New(Options{})
	for b.Loop() {
		if h, _ := s.find("POST", "/containers/4fa6e0f0c678/wait"); h == nil {
			b.Fatal("no route")
		}
	}
}

func BenchmarkCreateBody(b *testing.B) {
	s := New(Options{})
	body := `{"Image":"busybox","Cmd":["true"],"Env":["A=b"],"HostConfig":{"AutoRemove":true,"NetworkMode":"default","PortBindings":{},"RestartPolicy":{"Name":"no"}},"NetworkingConfig":{"EndpointsConfig":{}}}`
	for b.Loop() {
		var create createBody
		if err := decodeJSON(strings.NewReader(body), &create); err != nil {
			b.Fatal(err)
		}
		if _, _, err := s.toCreate(create, 56); err != nil {
			b.Fatal(err)
		}
	}
}
