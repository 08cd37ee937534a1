package settings

import (
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestBuilder(t *testing.T) {
	file := filepath.Join(t.TempDir(), "daemon.json")
	parse := func(text string) (Settings, error) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return Parse([]string{"--config-file", file}, io.Discard)
	}
	// As in Docker's own documentation.
	s, err := parse(`{"builder":{"gc":{"enabled":true,"policy":[
		{"keepStorage":"10GB","filter":["unused-for=2200h"]},
		{"reservedSpace":"5%","filter":{"unused-for":{"3300h":true}}},
		{"keepStorage":"100GB","all":true}]},"entitlements":{"network-host":false,"security-insecure":true}}}`)
	if err != nil {
		t.Fatal(err)
	}
	rules := s.Builder.GC.Rules()
	if len(rules) != 3 || rules[0].Reserved.Of(0) != 10<<30 || rules[0].Filter["unused-for"][0] != "2200h" || rules[1].Reserved.Of(1000) != 50 || rules[1].Filter["unused-for"][0] != "3300h" || !rules[2].All {
		t.Errorf("rules: %+v", rules)
	}
	if got := s.Builder.Entitlements.Granted(); !slices.Equal(got, []string{"security.insecure", "device"}) {
		t.Errorf("entitlements: %q", got)
	}
	s, err = parse(`{"builder":{"gc":{"defaultKeepStorage":"20GB"}}}`)
	if err != nil {
		t.Fatal(err)
	}
	if reserved, used, free := s.Builder.GC.Bounds(); len(s.Builder.GC.Rules()) != 0 || reserved.Of(0) != 20<<30 || used != (Space{}) || free != (Space{}) {
		t.Errorf("bounds: %v %v %v", reserved, used, free)
	}
	for text, want := range map[string]string{
		`{"builder":{"gc":{"policy":[{"filter":["color=red"]}]}}}`:       "color",
		`{"builder":{"gc":{"policy":[{"filter":["unused-for=soon"]}]}}}`: "time span",
		`{"builder":{"gc":{"defaultReservedSpace":"120%"}}}`:             "percentage",
		`{"builder":{"gc":{"defaultReservedSpace":"much"}}}`:             "size",
		`{"builder":{"gc":{"defaultreservedspaces":"1"}}}`:               "unknown field",
		`{"builder":{"parallelism":-1}}`:                                 "parallelism",
	} {
		if _, err := parse(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", text, err, want)
		}
	}
}
