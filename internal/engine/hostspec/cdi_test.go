package hostspec

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"corten.dev/corten/internal/container"
	"corten.dev/corten/internal/errs"
)

const thing = `{"cdiVersion":"0.7.0","kind":"vendor.com/thing","containerEdits":{"env":["ALL=1"]},"devices":[
 {"name":"one","containerEdits":{"deviceNodes":[{"path":"/dev/thing0","hostPath":"/dev/zero","permissions":"r"}],"env":["THING=one"],
  "mounts":[{"hostPath":"/etc/passwd","containerPath":"/thing/passwd","options":["ro","bind"]}],
  "hooks":[{"hookName":"createRuntime","path":"/bin/true","args":["true"]}],"additionalGids":[7]}},
 {"name":"two","containerEdits":{"env":["THING=two"]}}]}`

const gpus = "cdiVersion: 0.5.0\nkind: nvidia.com/gpu\ndevices:\n- {name: \"0\", containerEdits: {env: [\"G0=1\"]}}\n- {name: \"1\", containerEdits: {env: [\"G1=1\"]}}\n- {name: all, containerEdits: {env: [\"GALL=1\"]}}\n"

func describe(t *testing.T, files map[string]string) *CDI {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return NewCDI([]string{dir, ""})
}

func inject(c *CDI, reqs ...container.DeviceRequest) (*specs.Spec, error) {
	spec := &specs.Spec{Process: &specs.Process{Env: []string{"PATH=/bin"}}, Linux: &specs.Linux{Resources: &specs.LinuxResources{Devices: defaultRules()}}}
	return spec, c.Inject(spec, reqs)
}

func TestDevicesByName(t *testing.T) {
	c := describe(t, map[string]string{"thing.json": thing})
	spec, err := inject(c, container.DeviceRequest{Driver: "cdi", DeviceIDs: []string{"vendor.com/thing=one", "vendor.com/thing=one"}})
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(spec.Process.Env, " "); got != "PATH=/bin ALL=1 THING=one" {
		t.Errorf("environment %s", got)
	}
	if d := spec.Linux.Devices; len(d) != 1 || d[0].Path != "/dev/thing0" || d[0].Type != "c" || d[0].Major != 1 || d[0].Minor != 5 {
		t.Errorf("devices %+v", d)
	}
	// The rule stands among the container's own: whoever makes the cgroup keeps it (WISHES 21).
	last := spec.Linux.Resources.Devices[len(spec.Linux.Resources.Devices)-1]
	if !last.Allow || last.Type != "c" || *last.Major != 1 || *last.Minor != 5 || last.Access != "r" {
		t.Errorf("rule %+v", last)
	}
	if len(spec.Mounts) != 1 || spec.Mounts[0].Destination != "/thing/passwd" || len(spec.Hooks.CreateRuntime) != 1 || !slices.Equal(spec.Process.User.AdditionalGids, []uint32{7}) {
		t.Errorf("mounts %+v, hooks %+v, groups %v", spec.Mounts, spec.Hooks, spec.Process.User.AdditionalGids)
	}
}

func TestGPUs(t *testing.T) {
	c := describe(t, map[string]string{"gpu.yaml": gpus, "thing.json": thing})
	gpu := [][]string{{"gpu"}}
	for _, tc := range []struct {
		req  container.DeviceRequest
		want string // environment, or the error
	}{
		{container.DeviceRequest{Count: -1, Capabilities: gpu}, "GALL=1"},
		{container.DeviceRequest{Count: 1, Capabilities: gpu}, "G0=1"},
		{container.DeviceRequest{Count: 2, Capabilities: [][]string{{"utility", "gpu"}}, Driver: "nvidia"}, "G0=1 G1=1"},
		{container.DeviceRequest{DeviceIDs: []string{"1"}, Capabilities: gpu}, "G1=1"},
		{container.DeviceRequest{DeviceIDs: []string{"nvidia.com/gpu=1"}, Capabilities: gpu}, "G1=1"},
		{container.DeviceRequest{Count: 3, Capabilities: gpu}, "3 GPUs asked for, but there is no device nvidia.com/gpu=2"},
		{container.DeviceRequest{Count: 1 << 60, Capabilities: gpu}, "there is no device nvidia.com/gpu=2"},
		{container.DeviceRequest{Count: 1, DeviceIDs: []string{"0"}, Capabilities: gpu}, "cannot set both Count and DeviceIDs on device request"},
		{container.DeviceRequest{Count: 1, Driver: "amd", Capabilities: gpu}, `could not select device driver "amd" with capabilities: [[gpu]]`},
		{container.DeviceRequest{Count: 1, Capabilities: [][]string{{"tpu"}}}, `could not select device driver "" with capabilities: [[tpu]]`},
		{container.DeviceRequest{Driver: "cdi", Count: 1}, "it takes names of devices only"},
		{container.DeviceRequest{Driver: "cdi", DeviceIDs: []string{"vendor.com/thing=three"}}, "CDI device injection failed: unresolvable CDI devices vendor.com/thing=three"},
	} {
		spec, err := inject(c, tc.req)
		got := strings.Join(spec.Process.Env[1:], " ")
		if err != nil {
			got = err.Error()
			if !errors.Is(err, errs.Invalid) {
				t.Errorf("%+v: %v is no fault of the request", tc.req, err)
			}
		}
		if !strings.Contains(got, tc.want) || err == nil && got != tc.want {
			t.Errorf("%+v: %q, want %q", tc.req, got, tc.want)
		}
	}
	for name, c := range map[string]*CDI{"no files": describe(t, nil), "no folders": NewCDI(nil), "nothing": nil} {
		if _, err := inject(c, container.DeviceRequest{Count: -1, Capabilities: gpu}); err == nil || err.Error() != `could not select device driver "" with capabilities: [[gpu]]` {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A bad file takes only its own devices away, and says so where somebody looks: an operator sees nothing of it otherwise.
func TestBadDescriptions(t *testing.T) {
	c := describe(t, map[string]string{"thing.json": thing, "bad.json": `{"cdiVersion":"0.6.0","kind":"x`})
	names, warnings := c.Devices()
	if strings.Join(names, " ") != "vendor.com/thing=one vendor.com/thing=two" || len(warnings) != 1 || !strings.Contains(warnings[0], "bad.json") {
		t.Errorf("%q, %q", names, warnings)
	}
	if _, err := inject(c, container.DeviceRequest{Driver: "cdi", DeviceIDs: []string{"vendor.com/bad=1"}}); err == nil || !strings.Contains(err.Error(), "bad.json") {
		t.Error(err)
	}
	if _, err := inject(c, container.DeviceRequest{Driver: "cdi", DeviceIDs: []string{"vendor.com/thing=two"}}); err != nil {
		t.Error(err)
	}
}
