package parse

import (
	"encoding/json"
	"strings"
	"testing"
)

func js(t *testing.T, v any) string {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestPublish(t *testing.T) {
	for spec, want := range map[string]string{
		"80":                       `{"80/tcp":[{"HostIp":"","HostPort":""}]}`,
		"8080:80":                  `{"80/tcp":[{"HostIp":"","HostPort":"8080"}]}`,
		"8080:80/udp":              `{"80/udp":[{"HostIp":"","HostPort":"8080"}]}`,
		"8080:80/SCTP":             `{"80/sctp":[{"HostIp":"","HostPort":"8080"}]}`,
		"127.0.0.1:8080:80":        `{"80/tcp":[{"HostIp":"127.0.0.1","HostPort":"8080"}]}`,
		"127.0.0.1::80":            `{"80/tcp":[{"HostIp":"127.0.0.1","HostPort":""}]}`,
		"[::1]:8080:80":            `{"80/tcp":[{"HostIp":"::1","HostPort":"8080"}]}`,
		"::1:8080:80":              `{"80/tcp":[{"HostIp":"::1","HostPort":"8080"}]}`,
		"8000-8001:80-81":          `{"80/tcp":[{"HostIp":"","HostPort":"8000"}],"81/tcp":[{"HostIp":"","HostPort":"8001"}]}`,
		"8000-8010:80":             `{"80/tcp":[{"HostIp":"","HostPort":"8000-8010"}]}`,
		"80-81":                    `{"80/tcp":[{"HostIp":"","HostPort":""}],"81/tcp":[{"HostIp":"","HostPort":""}]}`,
		"80/":                      `{"80/tcp":[{"HostIp":"","HostPort":""}]}`,
		"[]:8080:80":               `{"80/tcp":[{"HostIp":"","HostPort":"8080"}]}`,
		"target=80,published=8080": `{"80/tcp":[{"HostIp":"","HostPort":"8080"}]}`,
		"target=53,protocol=udp":   `{"53/udp":[{"HostIp":"","HostPort":""}]}`,
		"":                         "no port specified: <empty>",
		"8080:":                    "no port specified: 8080:<empty>",
		"x:80":                     "invalid hostPort: x",
		"80:x":                     "invalid containerPort: x",
		"99999:80":                 "invalid hostPort: 99999",
		"1.2.3:80:80":              "invalid IP address: 1.2.3",
		"80/foo":                   "invalid proto: foo",
		"80/tcp/udp":               "invalid proto: tcp/udp",
		"x:y:80/FOO":               "invalid proto: foo",
		"[fe80::1%lo]:80:80":       "invalid IP address: fe80::1%lo",
		"[::1":                     "invalid IP address [: address [:: missing ']' in address",
		"[::1]:80":                 "invalid IP address [:: address [::: missing ']' in address",
		"80-81-82":                 "invalid containerPort: 80-81-82",
		"1-3:80-81":                "invalid ranges specified for container and host Ports: 80-81 and 1-3",
		"81-80":                    "invalid containerPort: 81-80",
		"target=80,mode=sideways":  "invalid publish mode: sideways",
		"1:2:3:4":                  "invalid IP address: 1:2",
	} {
		var p Ports
		got := ""
		if err := p.Publish(spec); err != nil {
			got = err.Error()
		} else {
			got = js(t, p.Bindings)
		}
		if got != want {
			t.Errorf("%q:\n got %s\nwant %s", spec, got, want)
		}
	}
}

func TestMount(t *testing.T) {
	for spec, want := range map[string]string{
		"type=bind,src=/a,dst=/b,ro": `{"Type":"bind","Source":"/a","Target":"/b","ReadOnly":true}`,
		"dst=/b":                     `{"Type":"volume","Target":"/b"}`,
		"type=bind,source=/a,target=/b,bind-propagation=rslave":                      `{"Type":"bind","Source":"/a","Target":"/b","BindOptions":{"Propagation":"rslave"}}`,
		"src=v,dst=/b,volume-nocopy,volume-label=a=b,volume-driver=d,volume-opt=o=1": `{"Type":"volume","Source":"v","Target":"/b","VolumeOptions":{"NoCopy":true,"Labels":{"a":"b"},"DriverConfig":{"Name":"d","Options":{"o":"1"}}}}`,
		"type=tmpfs,dst=/t,tmpfs-size=1m,tmpfs-mode=1770":                            `{"Type":"tmpfs","Target":"/t","TmpfsOptions":{"SizeBytes":1048576,"Mode":1016}}`,
		`type=volume,dst=/b,"volume-opt=o=a,b"`:                                      `{"Type":"volume","Target":"/b","VolumeOptions":{"DriverConfig":{"Options":{"o":"a,b"}}}}`,
		"type=image,src=i,dst=/b,image-subpath=x":                                    `{"Type":"image","Source":"i","Target":"/b","ImageOptions":{"Subpath":"x"}}`,
		"type=bind,src=/a":                      "target is required",
		"foo":                                   "invalid field 'foo' must be a key=value pair",
		"dst=/b,foo=bar":                        "unexpected key 'foo' in 'foo=bar'",
		"type=bind,src=/a,dst=/b,volume-nocopy": "cannot mix 'volume-*' options with mount type 'bind'",
		"type=bind,src=/a,dst=/b,readonly=x":    "invalid value for readonly: x",
		"type=bind,src=/a,dst=/b,bind-recursive=readonly": "option 'bind-recursive=readonly' requires 'readonly' to be specified in conjunction",
		"": "EOF",
	} {
		m, err := Mount(spec)
		got := ""
		if err != nil {
			got = err.Error()
		} else {
			got = js(t, m)
		}
		if got != want {
			t.Errorf("%q:\n got %s\nwant %s", spec, got, want)
		}
	}
}

func TestSmallWords(t *testing.T) {
	text := func(v any, err error) string {
		if err != nil {
			return err.Error()
		}
		return js(t, v)
	}
	env := func(n string) (string, bool) { return "val", n == "SET" }
	for _, c := range []struct{ got, want string }{
		{text(CPUs("1.5")), "1500000000"}, {text(CPUs(".000000001")), "1"}, {text(CPUs("2")), "2000000000"},
		{text(CPUs("1.0000000001")), `value is too precise`}, {text(CPUs("x")), "failed to parse x as a rational number"}, {text(CPUs("-1")), "failed to parse -1 as a rational number"},
		{text(Bytes("1k")), "1024"}, {text(Bytes("-1")), "-1"}, {text(Bytes("x")), "invalid size: 'x'"},
		{text(Restart("on-failure:3")), `{"Name":"on-failure","MaximumRetryCount":3}`}, {text(Restart(":3")), "invalid restart policy format: no policy provided before colon"},
		{text(Ulimit("nofile=1:2")), `{"Name":"nofile","Hard":2,"Soft":1}`},
		{text(AddHost("a:::1")), `"a:::1"`}, {text(AddHost("a=[::1]")), `"a:::1"`}, {text(AddHost("a:host-gateway")), `"a:host-gateway"`}, {text(AddHost("a:b")), `invalid IP address in add-host: "b"`},
		{text(GPUs("all")), `{"Driver":"","Count":-1,"DeviceIDs":null,"Capabilities":[["gpu"]],"Options":{}}`},
		{text(GPUs(`device=0,1`)), `{"Driver":"","Count":1,"DeviceIDs":["0"],"Capabilities":[["gpu"]],"Options":{}}`}, {text(GPUs("all,all")), "gpu request key 'all' can be specified only once"},
		{text(GPUs(`"device=0,1"`)), `{"Driver":"","Count":0,"DeviceIDs":["0","1"],"Capabilities":[["gpu"]],"Options":{}}`},
		{text(Env([]string{"A=1", "SET", "UNSET"}, env)), `["A=1","SET=val","UNSET"]`}, {text(Env([]string{"=x"}, env)), "invalid environment variable: =x"}, // the name alone takes away what the image sets
		{text(KeyValues(strings.NewReader("\xef\xbb\xbfA=1\n# no\n\n  B=2 \nSET\nUNSET\n"), env)), `["A=1","B=2 ","SET=val"]`},
		{text(KeyValues(strings.NewReader("A B=1"), env)), "variable 'A B' contains whitespaces"},
		{text(KeyValues(strings.NewReader("=1"), env)), "no variable name on line '=1'"},
		{text(NetworkFlag("name=n,alias=a,alias=b,ip=10.0.0.2,driver-opt=k=v")), `{"Name":"n","Aliases":["a","b"],"IPv4":"10.0.0.2","IPv6":"","MAC":"","LinkLocal":null,"DriverOpts":{"k":"v"},"GwPriority":0}`},
		{text(NetworkFlag("alias=a")), "network name/id is not specified"},
	} {
		if c.got != c.want {
			t.Errorf("got %s\nwant %s", c.got, c.want)
		}
	}
	dev, cdi, err := Device("/dev/a:/dev/b:rw")
	if err != nil || cdi != "" || dev.PathInContainer != "/dev/b" || dev.CgroupPermissions != "rw" {
		t.Error(dev, cdi, err)
	}
	if _, cdi, err := Device("vendor.com/class=name"); cdi == "" || err != nil {
		t.Error(cdi, err)
	}
	if err := DeviceRule("c 1:* rwm"); err != nil {
		t.Error(err)
	}
	if err := DeviceRule("c 1 rwm"); err == nil {
		t.Error("rule without minor number went through")
	}
}

func FuzzPublish(f *testing.F) {
	for _, s := range []string{"80", "[::1]:1-2:3-4/udp", "target=1,published=2", "1:2:3:4", "-"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var p Ports
		if err := p.Publish(s); err == nil && len(p.Bindings) == 0 {
			t.Errorf("%q gave nothing", s)
		}
		_ = new(Ports).Expose(s)
	})
}

func FuzzWords(f *testing.F) {
	f.Add("name=a,ip=::1")
	f.Add("/dev/a:b:rwm")
	f.Add("count=1,device=2")
	f.Add("A=1\n#\nB")
	f.Fuzz(func(t *testing.T, s string) {
		_, _ = NetworkFlag(s)
		_ = Link(s)
		_, _, _ = Device(s)
		_ = DeviceRule(s)
		_, _ = GPUs(s)
		_, _ = AddHost(s)
		_, _ = Restart(s)
		_, _ = Ulimit(s)
		_, _ = WeightDevice(s)
		_, _ = ThrottleDevice(s, true)
		if n, err := CPUs(s); err == nil && n < 0 {
			t.Errorf("CPUs(%q) = %d", s, n)
		}
		if vars, err := KeyValues(strings.NewReader(s), nil); err == nil {
			for _, v := range vars {
				if v == "" || v[0] == '=' {
					t.Errorf("%q gave %q", s, v)
				}
			}
		}
	})
}
