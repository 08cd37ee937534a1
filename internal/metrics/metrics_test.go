package metrics

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"corten.dev/corten/internal/container"
	"corten.dev/corten/internal/engine/containers"
	"corten.dev/corten/internal/engine/networks"
	"corten.dev/corten/internal/engine/system"
	"corten.dev/corten/internal/filter"
	"corten.dev/corten/internal/network"
	engineruntime "corten.dev/corten/internal/runtime"
	"corten.dev/corten/internal/volume"
)

type fakes struct{}

const odd = "we\"ird\\\nimage"

func (fakes) List(context.Context, containers.ListOptions) ([]containers.View, error) {
	web := containers.View{Record: container.Record{ID: "aaa", Name: "web", ImageRef: odd, RestartCount: 2, State: container.State{Status: container.Running, StartedAt: time.Unix(1000, 5e8)},
		Sandbox: &network.Sandbox{Endpoints: []network.Endpoint{{Interface: "eth0", Network: "front"}}}}}
	return []containers.View{web, {Record: container.Record{ID: "bbb", Name: "old", ImageRef: "img", State: container.State{Status: container.Exited}}}}, nil
}

func (fakes) Readings(context.Context) []*containers.Stats {
	return []*containers.Stats{{ID: "aaa", Name: "web", Read: time.Unix(2000, 0), Running: true, Stats: engineruntime.Stats{CPUTotal: 1500000000, MemoryUsage: 1000, MemoryLimit: 1 << 40, OOMKills: 3, Pids: 4,
		MemoryStat:        []engineruntime.Counter{{Name: "total_cache", Value: 700}, {Name: "total_inactive_file", Value: 300}},
		BlkioServiceBytes: []engineruntime.BlkioEntry{{Major: 8, Op: "Read", Value: 5}, {Major: 8, Op: "Total", Value: 5}}},
		Networks: []containers.NetStats{{Name: "eth0", RxBytes: 11, TxBytes: 22}, {Name: "odd\"0", RxBytes: 1}}}}
}

func (fakeNetworks) EgressCounts(context.Context) (owners, nets map[string]network.EgressCount, err error) {
	return map[string]network.EgressCount{"aaa": {Allowed: network.Traffic{Packets: 3, Bytes: 180}, Spoofed: network.Traffic{Packets: 1, Bytes: 29}}},
		map[string]network.EgressCount{"n1": {Dropped: network.Traffic{Packets: 2, Bytes: 120}}, "gone": {}}, nil
}

type fakeNetworks struct{}

func (fakeNetworks) List(context.Context, filter.Args) ([]networks.View, error) {
	return []networks.View{{Network: network.Network{ID: "n1", Name: "front", Driver: "bridge"}, Containers: map[string]networks.Member{"aaa": {}}}}, nil
}

type fakeVolumes struct{}

func (fakeVolumes) Known(context.Context) ([]volume.Volume, error) {
	return []volume.Volume{{Name: "data", Driver: "local"}, {Name: "new", Driver: "local"}}, nil
}
func (fakeVolumes) Users(name string) int { return len(name) }

type fakeSystem struct{}

func (fakeSystem) Info(context.Context) (system.Info, error) {
	return system.Info{ID: "id", NCPU: 2, MemTotal: 1 << 33, Running: 1, Stopped: 1, Images: 7}, nil
}
func (fakeSystem) VolumeSizes(_ context.Context, names []string) []int64 {
	return []int64{4096, system.Unknown}[:len(names)]
}

func ask(t *testing.T, url, accept string) (body, contentType string) {
	t.Helper()
	h := Handler(Options{Containers: fakes{}, Networks: fakeNetworks{}, Volumes: fakeVolumes{}, System: fakeSystem{}, Events: func() uint64 { return 9 }, Version: "1", Logger: slog.New(slog.DiscardHandler)})
	r := httptest.NewRequest("GET", url, nil)
	r.Header.Set("Accept", accept)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	text, err := io.ReadAll(w.Body)
	if err != nil || w.Code != http.StatusOK {
		t.Fatalf("%d, %v", w.Code, err)
	}
	return string(text), w.Header().Get("Content-Type")
}

var (
	metricName = regexp.MustCompile(`^[a-zA-Z_:][a-zA-Z0-9_:]*$`)
	labelPair  = regexp.MustCompile(`^([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\["\\n])*)"(,|$)`)
)

// parse reads either format strictly, by the letter of its specification, and returns the samples by name and labels.
func parse(text string, open bool) (map[string]float64, error) {
	samples := map[string]float64{}
	seen := map[string]bool{}
	var family, kind string
	described := map[string]bool{}
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	if !strings.HasSuffix(text, "\n") {
		return nil, fmt.Errorf("the last line has no end")
	}
	if open {
		if lines[len(lines)-1] != "# EOF" {
			return nil, fmt.Errorf("no # EOF at the end")
		}
		lines = lines[:len(lines)-1]
	}
	for _, line := range lines {
		if rest, ok := strings.CutPrefix(line, "# "); ok {
			f := strings.SplitN(rest, " ", 3)
			if len(f) != 3 || !metricName.MatchString(f[1]) {
				return nil, fmt.Errorf("descriptor %q", line)
			}
			if f[1] != family {
				if seen[f[1]] {
					return nil, fmt.Errorf("family %s comes twice", f[1])
				}
				family, kind, described = f[1], "", map[string]bool{}
				seen[family] = true
			}
			if described[f[0]] {
				return nil, fmt.Errorf("%s of %s comes twice", f[0], family)
			}
			described[f[0]] = true
			switch f[0] {
			case "TYPE":
				kind = f[2]
				if !slices.Contains([]string{"gauge", "counter", "info"}, kind) || !open && kind == "info" {
					return nil, fmt.Errorf("type %s", kind)
				}
			case "UNIT":
				if !open || !strings.HasSuffix(family, "_"+f[2]) {
					return nil, fmt.Errorf("unit %s of %s", f[2], family)
				}
			case "HELP":
			default:
				return nil, fmt.Errorf("comment %q", line)
			}
			continue
		}
		name, rest := line, ""
		if i := strings.IndexAny(line, "{ "); i >= 0 {
			name, rest = line[:i], line[i:]
		}
		want := family
		if open {
			want += map[string]string{"counter": "_total", "info": "_info", "gauge": ""}[kind]
		} else if kind == "counter" && !strings.HasSuffix(family, "_total") {
			return nil, fmt.Errorf("counter %s", family)
		}
		if kind == "" || name != want {
			return nil, fmt.Errorf("sample %q in the family %s (%s)", line, family, kind)
		}
		key := name
		if strings.HasPrefix(rest, "{") {
			names := map[string]bool{}
			for rest = rest[1:]; !strings.HasPrefix(rest, "}"); {
				m := labelPair.FindStringSubmatch(rest[:strings.LastIndex(rest, "}")])
				if m == nil || names[m[1]] {
					return nil, fmt.Errorf("labels of %q", line)
				}
				names[m[1]] = true
				key += " " + m[1] + "=" + m[2]
				rest = rest[len(m[0]):]
			}
			rest = rest[1:]
		}
		value, err := strconv.ParseFloat(strings.TrimPrefix(rest, " "), 64)
		if err != nil || !strings.HasPrefix(rest, " ") {
			return nil, fmt.Errorf("value of %q", line)
		}
		if _, dup := samples[key]; dup {
			return nil, fmt.Errorf("sample %s comes twice", key)
		}
		samples[key] = value
	}
	return samples, nil
}

func TestBothFormats(t *testing.T) {
	id := ` id=aaa name=web image=we\"ird\\\nimage`
	for _, c := range []struct {
		accept, contentType string
		open                bool
	}{
		{"application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.5,*/*;q=0.1", "application/openmetrics-text; version=1.0.0; charset=utf-8", true},
		{"text/plain", "text/plain; version=0.0.4; charset=utf-8", false},
		{"", "text/plain; version=0.0.4; charset=utf-8", false},
	} {
		text, contentType := ask(t, "/metrics?sizes=1", c.accept)
		if contentType != c.contentType {
			t.Errorf("%q: %s", c.accept, contentType)
		}
		got, err := parse(text, c.open)
		if err != nil {
			t.Fatalf("%q: %v\n%s", c.accept, err, text)
		}
		for sample, want := range map[string]float64{
			"container_cpu_usage_seconds_total" + id: 1.5, "container_memory_working_set_bytes" + id: 700, "container_memory_cache" + id: 700, "container_oom_events_total" + id: 3,
			"container_spec_memory_limit_bytes" + id: 1 << 40, "container_threads" + id: 4, "container_fs_reads_bytes_total" + id + " device=8:0": 5,
			"corten_container_egress_packets_total" + id + " verdict=allowed": 3, "corten_container_egress_bytes_total" + id + " verdict=spoofed": 29,
			"corten_network_egress_packets_total id=n1 name=front verdict=dropped":         2,
			"container_network_receive_bytes_total" + id + " interface=eth0 network=front": 11, "container_network_receive_bytes_total" + id + ` interface=odd\"0 network=`: 1,
			"corten_container_state" + id + " state=running": 1, "corten_container_state id=bbb name=old image=img state=exited": 1, "corten_container_restarts_total" + id: 2,
			"container_start_time_seconds" + id: 1000.5, "container_last_seen" + id: 2000,
			"corten_network_info id=n1 name=front driver=bridge": 1, "corten_network_containers name=front": 1, "corten_volume_info name=data driver=local": 1,
			"corten_volume_containers name=data": 4, "corten_volume_size_bytes name=data": 4096, "engine_daemon_container_states_containers state=stopped": 1,
			"engine_daemon_events_total": 9, "engine_daemon_engine_memory_bytes": 1 << 33, "corten_images": 7,
		} {
			if value, ok := got[sample]; !ok || value != want {
				t.Errorf("%s is %v (%v), want %v", sample, value, ok, want)
			}
		}
		for key := range got {
			if strings.HasPrefix(key, "corten_volume_size_bytes name=new") || strings.HasPrefix(key, "container_threads_max") {
				t.Errorf("%s is not known", key)
			}
		}
	}
	if text, _ := ask(t, "/metrics", ""); strings.Contains(text, "size_bytes") {
		t.Error("volumes are counted though nobody asked for it")
	}
}

func TestNegotiate(t *testing.T) {
	for accept, want := range map[string]Format{
		"": Prometheus, "*/*": Prometheus, "application/openmetrics-text": OpenMetrics, "application/openmetrics-text; version=2.0.0": Prometheus,
		`application/openmetrics-text;version="1.0.0"`: OpenMetrics, "text/plain,application/openmetrics-text;q=0.1": Prometheus, "application/openmetrics-text;q=0": Prometheus,
		"application/openmetrics-text;q=x": OpenMetrics,
	} {
		if got := Negotiate(accept); got != want {
			t.Errorf("%q: %v", accept, got)
		}
	}
}

// Names come from users and images, interfaces' even from inside a container: none may break the text or forge a sample.
func FuzzLabels(f *testing.F) {
	f.Add("plain", "a\"} 1\nforged 2")
	f.Add("\xff\\", "\n\"\\")
	f.Fuzz(func(t *testing.T, a, b string) {
		for _, format := range []Format{Prometheus, OpenMetrics} {
			p := page{format: format}
			p.family("x", gauge, "", a)
			p.add(labels("one", a, "two", b), 1)
			if got, err := parse(string(p.end()), format == OpenMetrics); err != nil || len(got) != 1 {
				t.Errorf("%q %q: %v, %v", a, b, got, err)
			}
		}
	})
}
