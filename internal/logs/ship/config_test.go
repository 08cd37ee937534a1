package ship

import (
	"maps"
	"strings"
	"testing"
	"time"
)

type named struct {
	receiver
	name    string
	options []string
}

func (n *named) Name() string      { return n.name }
func (n *named) Options() []string { return n.options }

func testDrivers() Drivers {
	all := map[string]Driver{
		"json-file": &named{name: "json-file"}, "syslog": &named{name: "syslog", options: []string{"syslog-address"}}, "gelf": &named{name: "gelf", options: []string{"gelf-address"}},
		"plugged": &named{name: "plugged", options: []string{AnyOption}},
	}
	return func(name string) Driver { return all[name] }
}

func options(text string) map[string]string {
	m := map[string]string{}
	for _, kv := range strings.Fields(text) {
		key, value, _ := strings.Cut(kv, "=")
		m[key] = value
	}
	return m
}

// Docker's words, of version 20.10, for what it refuses when a container is made or started.
func TestRefusedOptions(t *testing.T) {
	for _, c := range []struct{ names, opts, want string }{
		{"splunk", "", "logger: no log driver named 'splunk' is registered"},
		{"awslogs", "awslogs-region=x", "logger: no log driver named 'awslogs' is registered"},
		{"", "", "logger: no log driver named '' is registered"},
		{"syslog,", "", "logger: no log driver named '' is registered"},
		{"syslog,gelf,syslog", "", `log driver "syslog" is named twice in "syslog,gelf,syslog"`},
		{"none,syslog", "", `log driver "none" keeps nothing: it cannot be combined with others ("none,syslog")`},
		{"none", "max-size=1m", "invalid logging opts for driver none"},
		{"json-file", "foo=bar", "unknown log opt 'foo' for json-file log driver"},
		{"local", "foo=bar", "unknown log opt 'foo' for log driver local"},
		{"syslog", "foo=bar", "unknown log opt 'foo' for syslog log driver"},
		{"syslog", "gelf-address=x", "unknown log opt 'gelf-address' for syslog log driver"},
		{"syslog", "max-size=1m", "unknown log opt 'max-size' for syslog log driver"},
		{"syslog,gelf", "gelf.syslog-address=x", "unknown log opt 'gelf.syslog-address' for syslog,gelf log driver"},
		{"syslog", "gelf.tag=x", "unknown log opt 'gelf.tag' for syslog log driver"},
		{"json-file", "cache-disabled=true", "unknown log opt 'cache-disabled' for json-file log driver"},
		{"syslog", "cache-foo=1", "unknown log opt 'cache-foo' for syslog log driver"},
		{"syslog", "cache-disabled=maybe", "invalid value for option cache-disabled: maybe"},
		{"syslog", "cache-max-size=x", "invalid value for max-size: x: invalid size: 'x'"},
		{"json-file", "mode=foo", "logger: logging mode not supported: foo"},
		{"json-file", "max-buffer-size=1m", "logger: max-buffer-size option is only supported with 'mode=non-blocking'"},
		{"json-file", "mode=non-blocking max-buffer-size=zz", "error parsing option max-buffer-size: invalid size: 'zz'"},
		{"json-file", "max-size=x", "invalid value for max-size: x: invalid size: 'x'"},
		{"json-file", "max-size=0", "max-size must be a positive number"},
		{"json-file", "max-file=0", "max-file cannot be less than 1"},
		{"local", "max-file=x", `invalid value for max-file: x: strconv.Atoi: parsing "x": invalid syntax`},
		{"local", "compress=z", `invalid value for compress: z: strconv.ParseBool: parsing "z": invalid syntax`},
		{"json-file", "compress=true max-file=1", "compress cannot be true when max-file is less than 2 or max-size is not set"},
		{"json-file", "labels-regex=(", "error parsing regexp: missing closing ): `(`"},
		{"syslog", "tag={{.Foo}}", `template: log-tag:1:2: executing "log-tag" at <.Foo>: can't evaluate field Foo in type *ship.Info`},
		{"syslog", "tag={{", "template: log-tag:1: unclosed action"},
		{"syslog,gelf", "gelf.tag={{", "template: log-tag:1: unclosed action"},
	} {
		_, err := Parse(testDrivers(), Request{Names: c.names, Options: options(c.opts)})
		if err == nil || err.Error() != c.want {
			t.Errorf("%s %s:\n got %v\nwant %s", c.names, c.opts, err, c.want)
		}
	}
}

func TestConfig(t *testing.T) {
	c, err := Parse(testDrivers(), Request{Names: "json-file,syslog,gelf", Options: options("max-size=1k max-file=2 compress=true tag=all gelf.tag=one labels=a syslog-address=tcp://x mode=non-blocking")})
	if err != nil {
		t.Fatal(err)
	}
	want := []map[string]string{
		{"max-size": "1k", "max-file": "2", "compress": "true", "tag": "all", "labels": "a"},
		{"tag": "all", "labels": "a", "syslog-address": "tcp://x"},
		{"tag": "one", "labels": "a"},
	}
	for i, target := range c.Targets {
		if !maps.Equal(target.Options, want[i]) {
			t.Errorf("%s has %v, want %v", target.Driver.Name(), target.Options, want[i])
		}
	}
	bound := Bound{MaxSize: 1024, MaxFiles: 2, Compress: true}
	if c.Targets[0].Bound != bound || c.Targets[1].Bound != (Bound{}) || c.Own != bound || !c.NonBlocking || c.Buffer != 1<<20 {
		t.Errorf("%+v", c)
	}
	// The file and the own log with bounds of their own.
	c, err = Parse(testDrivers(), Request{Names: "local,json-file", Options: options("local.max-size=1k json-file.max-size=2k max-file=7")})
	if err != nil || c.Own != (Bound{MaxSize: 1024, MaxFiles: 7}) || len(c.Targets) != 1 || c.Targets[0].Bound != (Bound{MaxSize: 2048, MaxFiles: 7}) {
		t.Errorf("%+v %v", c, err)
	}
	// The cache of a driver that cannot be read is the own log.
	c, err = Parse(testDrivers(), Request{Names: "syslog", Options: options("cache-max-size=1k cache-max-file=4 cache-compress=true cache-disabled=1")})
	if err != nil || c.Own != (Bound{MaxSize: 1024, MaxFiles: 4, Compress: true}) || !c.Unreadable {
		t.Errorf("%+v %v", c, err)
	}
	if _, err := Parse(testDrivers(), Request{Names: "plugged", Options: options("what=ever")}); err != nil {
		t.Error(err)
	}
	// Nobody named a driver.
	c, err = Parse(nil, Request{Names: "json-file", Options: options("max-size=-1"), Own: true})
	if err != nil || len(c.Targets) != 0 || c.Own.MaxSize != -1 {
		t.Errorf("%+v %v", c, err)
	}
}

func testInfo(opts map[string]string) *Info {
	return &Info{
		Config: opts, ContainerID: strings.Repeat("0123456789abcdef", 4), ContainerName: "/web", ContainerEntrypoint: "sh", ContainerArgs: []string{"-c", "x y"},
		ContainerImageID: "sha256:" + strings.Repeat("f", 64), ContainerImageName: "app:1", ContainerCreated: time.Unix(1, 0), ContainerEnv: []string{"FOO=x y", "BAR", "FOOD=1"},
		ContainerLabels: map[string]string{"com.ex.a": "va", "b": "v b"}, DaemonName: "docker", Host: "desk",
	}
}

func TestTagsAndAttributes(t *testing.T) {
	for tag, want := range map[string]string{
		"": "0123456789ab", "plain": "plain", "{{.FullID}}": strings.Repeat("0123456789abcdef", 4), "{{.Name}}/{{.ImageName}}/{{.DaemonName}}": "web/app:1/docker",
		"{{.ImageID}}": "sha256:fffff", "{{.Command}}": "sh -c x y", "{{upper .Name}}-{{truncate .ID 4}}": "WEB-0123", `{{join (split .Name "e") "-"}}`: "w-b", "{{json .ContainerArgs}}": `["-c","x y"]`,
		`{{index .ContainerLabels "b"}}`: "v b", "{{title .Name}}{{pad .Name 1 2}}|": "Web web  |", "{{with .Hostname}}{{.}}{{end}}": "desk", "{{.ContainerName}}": "/web",
	} {
		if got, err := testInfo(map[string]string{"tag": tag}).Tag(DefaultTag); err != nil || got != want {
			t.Errorf("%s: got %q %v, want %q", tag, got, err, want)
		}
	}
	for opts, want := range map[string]string{
		"labels=b,com.ex.a,none env=FOO tag={{.ID}}x": "FOO=x+y,b=v+b,com.ex.a=va,tag=0123456789abx", "env-regex=^FOO labels-regex=ex": "FOO=x+y,FOOD=1,com.ex.a=va", "env=BAR": "", "": "",
	} {
		if got, err := testInfo(options(opts)).Details(); err != nil || got != want {
			t.Errorf("%s: got %q %v, want %q", opts, got, err, want)
		}
	}
}

func FuzzConfig(f *testing.F) {
	f.Add("json-file,syslog", "gelf.tag", "{{.ID}}")
	f.Add("local", "max-size", "10m")
	f.Add("syslog", "cache-max-file", "3")
	f.Fuzz(func(t *testing.T, names, key, value string) {
		c, err := Parse(testDrivers(), Request{Names: names, Options: map[string]string{key: value}})
		if err == nil && !c.None && len(c.Targets) == 0 && !strings.Contains(names, Local) {
			t.Errorf("%q %q=%q: nothing keeps this log", names, key, value)
		}
	})
}

func FuzzTag(f *testing.F) {
	for _, s := range []string{"{{.ID}}", "{{json .}}", `{{pad .Name 3 100000000}}`, "{{range .ContainerArgs}}{{.}}{{end}}", "{{"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if got, err := testInfo(map[string]string{"tag": s}).Tag(""); err == nil && !strings.Contains(s, "{{") && got != s {
			t.Errorf("%q became %q", s, got)
		}
	})
}
