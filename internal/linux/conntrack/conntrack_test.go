package conntrack

import (
	"net/netip"
	"testing"
)

// attr is one attribute, padded.
func attr(typ byte, data ...byte) []byte {
	p := append([]byte{byte(4 + len(data)), 0, typ, 0}, data...)
	for len(p)%4 != 0 {
		p = append(p, 0)
	}
	return p
}

func tuple(from, to byte, sport, dport byte) (p []byte) {
	p = attr(1, append(attr(1, 192, 0, 2, from), attr(2, 192, 0, 2, to)...)...)
	return append(p, attr(2, append(append(attr(1, 6), attr(2, 0, sport)...), attr(3, 0, dport)...)...)...)
}

func message() []byte {
	p := append([]byte{2, 0, 0, 0}, attr(1, tuple(1, 2, 40, 80)...)...)
	p = append(p, attr(2, tuple(3, 1, 81, 40)...)...)
	return append(p, attr(3, 0, 0, 0, 2)...)
}

func TestReadFlow(t *testing.T) {
	f, err := readFlow(message())
	want := Flow{Proto: 6, From: netip.MustParseAddrPort("192.0.2.1:40"), To: netip.MustParseAddrPort("192.0.2.2:80"), At: netip.MustParseAddrPort("192.0.2.3:81"), Answered: true}
	if f.tuple = nil; err != nil || f.Proto != want.Proto || f.From != want.From || f.To != want.To || f.At != want.At || !f.Answered {
		t.Errorf("%+v %v, want %+v", f, err, want)
	}
}

func FuzzReadFlow(f *testing.F) {
	f.Add(message())
	f.Add([]byte{2, 0, 0})
	f.Fuzz(func(t *testing.T, p []byte) {
		if flow, err := readFlow(p); err == nil && flow.Proto != 0 && flow.tuple == nil {
			t.Errorf("%+v comes from nowhere", flow)
		}
	})
}
