package filter

import "testing"

func FuzzParse(f *testing.F) {
	f.Add(`{"label":{"a=b":true}}`)
	f.Add(`{"label":["a"]}`)
	f.Fuzz(func(t *testing.T, s string) {
		args, err := Parse(s)
		if err == nil {
			args.Labels("label", map[string]string{"a": "b"})
			args.Match("name", "x")
		}
	})
}

func TestMatching(t *testing.T) {
	args, err := Parse(`{"name":{"^we":true},"label":{"a=b":true,"c":true},"dangling":{"true":true}}`)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		what string
		got  bool
		want bool
	}{
		{"regular expression", args.Match("name", "web"), true},
		{"no match", args.Match("name", "db"), false},
		{"absent key matches all", args.Match("id", "db"), true},
		{"labels all hold", args.Labels("label", map[string]string{"a": "b", "c": ""}), true},
		{"a label is missing", args.Labels("label", map[string]string{"a": "b"}), false},
		{"a label differs", args.Labels("label", map[string]string{"a": "x", "c": ""}), false},
	} {
		if tc.got != tc.want {
			t.Errorf("%s: got %v", tc.what, tc.got)
		}
	}
	if err := args.Accept("name", "label"); err == nil {
		t.Error("an unknown key was accepted")
	}
	if on, err := args.Bool("dangling", false); err != nil || !on {
		t.Errorf("dangling: %v %v", on, err)
	}
}
