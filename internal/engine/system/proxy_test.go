package system

import "testing"

func TestProxy(t *testing.T) {
	t.Setenv("HTTP_PROXY", "")
	t.Setenv("http_proxy", "http://me:hidden@env:1")
	for set, want := range map[string]string{
		"":                      "http://xxxxx:xxxxx@env:1",
		"http://set:1":          "http://set:1",
		"me:hidden@set:1":       "xxxxx:xxxxx@set:1",
		"http://me:hid@den@s:1": "http://xxxxx:xxxxx@s:1",
	} {
		if got := proxy(set, "HTTP_PROXY"); got != want {
			t.Errorf("%q: got %q, want %q", set, got, want)
		}
	}
}
