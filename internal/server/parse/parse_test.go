package parse_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/server/parse"
)

func ExampleBind() {
	v, err := parse.Bind("data:/var/lib/data:ro,nocopy")
	fmt.Println(v.Source, v.Named(), v.Target, v.Mode, err)
	// Output: data true /var/lib/data ro,nocopy <nil>
}

func TestBind(t *testing.T) {
	for spec, want := range map[string]parse.Volume{
		"/a": {Target: "/a"}, "/a:/b": {Source: "/a", Target: "/b"}, "/a:/b:rw,z,rshared": {Source: "/a", Target: "/b", Mode: "rw,z,rshared"},
		"vol:/b": {Source: "vol", Target: "/b"}, "/a:ro": {Target: "/a", Mode: "ro"}, "/a:/b/../c": {Source: "/a", Target: "/b/../c"},
	} {
		if got, err := parse.Bind(spec); err != nil || got != want {
			t.Errorf("%q: %+v %v", spec, got, err)
		}
	}
	for _, spec := range []string{"", ":", "::", "a", "a:b", "/a:/b:", ":/b", ":/b:ro", "/a:/b:ro,rw", "/a:/b:nope", "/a:/", "/a:/b/..", "/a:/b:ro:x", "-x:/b", "v:/b", "/a:/b\x00", "a/b:/c"} {
		if got, err := parse.Bind(spec); !errors.Is(err, errs.Invalid) {
			t.Errorf("%q: %+v %v", spec, got, err)
		}
	}
}

func TestHostPort(t *testing.T) {
	for text, want := range map[string][2]uint16{"": {}, "0": {}, "80": {80, 80}, "80-90": {80, 90}, "65535": {65535, 65535}} {
		a, b, err := parse.HostPort(text)
		if err != nil || [2]uint16{a, b} != want {
			t.Errorf("%q: %d %d %v", text, a, b, err)
		}
	}
	for _, text := range []string{"-", "x", "90-80", "0-5", "65536", "1-2-3", "-1", "+1", " 80"} {
		if a, b, err := parse.HostPort(text); err == nil {
			t.Errorf("%q: %d %d", text, a, b)
		}
	}
}

func TestSmallLanguages(t *testing.T) {
	for _, entry := range []string{"db:10.0.0.1", "six:::1", "six:[::1]", "gw:host-gateway"} {
		if err := parse.ExtraHost(entry); err != nil {
			t.Errorf("%q: %v", entry, err)
		}
	}
	for _, entry := range []string{"", "db", ":1.2.3.4", "db:", "db:x"} {
		if err := parse.ExtraHost(entry); err == nil {
			t.Errorf("%q was accepted", entry)
		}
	}
	for _, options := range []string{"", "size=64m,mode=1777", "ro,noexec,nosuid"} {
		if err := parse.Tmpfs("/t", options); err != nil {
			t.Errorf("%q: %v", options, err)
		}
	}
	for target, options := range map[string]string{"t": "", "/": "", "/a": "size", "/b": "nope", "/c": "ro=1", "/d": "bind"} {
		if err := parse.Tmpfs(target, options); err == nil {
			t.Errorf("%q %q was accepted", target, options)
		}
	}
}

func FuzzBind(f *testing.F) {
	for _, seed := range []string{"/a:/b:ro", "v1:/b", "/a", ":::", "/a:ro"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, spec string) {
		v, err := parse.Bind(spec)
		if err != nil {
			return
		}
		if !strings.HasPrefix(v.Target, "/") || strings.ContainsRune(v.Source+v.Target, 0) {
			t.Errorf("%q gave %+v", spec, v)
		}
		if v.Named() && !parse.Name(v.Source) {
			t.Errorf("%q names the volume %q", spec, v.Source)
		}
	})
}

func FuzzHostPort(f *testing.F) {
	f.Add("80-90")
	f.Fuzz(func(t *testing.T, text string) {
		if a, b, err := parse.HostPort(text); err == nil && b < a {
			t.Errorf("%q: %d-%d", text, a, b)
		}
	})
}
