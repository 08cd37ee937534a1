package cgroup

import (
	"os"
	"testing"
)

func TestParsePressure(t *testing.T) {
	for text, want := range map[string]Pressure{
		"some avg10=0.00 avg60=1.50 avg300=0.00 total=12\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n": {12000, 7000, true},
		"some avg10=0.00 avg60=0.00 avg300=0.00 total=3\n":                                                  {3000, 0, true},
		"":                       {},
		"some avg10=0.00\n":      {},
		"junk total=5\nsome x\n": {},
	} {
		if got := parsePressure([]byte(text)); got != want {
			t.Errorf("%q: %+v, want %+v", text, got, want)
		}
	}
	b, err := os.ReadFile("/proc/pressure/cpu")
	if err != nil {
		t.Skipf("this kernel counts no pressure (CONFIG_PSI, psi=1): %v", err)
	}
	if !parsePressure(b).Known {
		t.Errorf("what the kernel writes is not understood: %s", b)
	}
}

func FuzzParsePressure(f *testing.F) {
	f.Add([]byte("some avg10=0.00 total=12\nfull total="))
	f.Fuzz(func(_ *testing.T, b []byte) { parsePressure(b) })
}
