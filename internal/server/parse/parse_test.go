package parse_test

import (
	"testing"

	"corten.dev/corten/internal/server/parse"
)

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

func FuzzHostPort(f *testing.F) {
	f.Add("80-90")
	f.Fuzz(func(t *testing.T, text string) {
		if a, b, err := parse.HostPort(text); err == nil && b < a {
			t.Errorf("%q: %d-%d", text, a, b)
		}
	})
}
