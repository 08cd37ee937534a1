package depot

import (
	"maps"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/snapshot"
)

// Whatever a crash made of the file: reading it gives holds that can be written and read again.
func FuzzParseHolds(f *testing.F) {
	chain := digest.FromString("x")
	f.Add(append(holdLine("a b\n", chain), holdLine("a b\n", "")...))
	f.Add([]byte("+ " + string(chain) + " \"x\" 00000000\n- \"\" 0\n\n+"))
	f.Fuzz(func(t *testing.T, data []byte) {
		holds, _ := parseHolds(data)
		var again []byte
		for name, chain := range holds {
			again = append(again, holdLine(name, chain)...)
		}
		back, damaged := parseHolds(again)
		if damaged > 0 || !maps.Equal(holds, back) {
			t.Errorf("%v became %v, %d damaged", holds, back, damaged)
		}
	})
}

// A line that is cut off anywhere costs its own change, and no other one.
func TestTornHolds(t *testing.T) {
	a, b := digest.FromString("a"), digest.FromString("b")
	first, second, third := holdLine("first", a), holdLine("sec\"ond", b), holdLine("first", "")
	for cut := range second {
		data := strings.Join([]string{string(first), string(second[:cut]), "\n", string(third), string(first)}, "")
		got, _ := parseHolds([]byte(data))
		want := map[string]snapshot.ChainID{"first": a}
		if cut == len(second)-1 {
			want["sec\"ond"] = b
		}
		if !maps.Equal(got, want) {
			t.Errorf("cut at %d: %v", cut, got)
		}
	}
}
