package runwire

import (
	"bytes"
	"reflect"
	"strings"
	"testing"
)

func TestReadMade(t *testing.T) {
	want := Made{ID: "abc", Warnings: []string{"no swap"}}
	frame, err := Frame(want)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := ReadMade(bytes.NewReader(frame)); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v", got, err)
	}
	for _, bad := range []string{"", "\x04\x00", "\x01\x00\x00\x00\x00\x00\x00\x02{}", "\x04\x00\x00\x00\xff\xff\xff\xff{}", "\x04\x00\x00\x00\x00\x00\x00\x03{}", "\x04\x00\x00\x00\x00\x00\x00\x02[]"} {
		if got, err := ReadMade(strings.NewReader(bad)); err == nil {
			t.Errorf("%q: %+v", bad, got)
		}
	}
}

func FuzzReadMade(f *testing.F) {
	f.Add([]byte("\x04\x00\x00\x00\x00\x00\x00\x0c{\"Id\":\"abc\"}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		made, err := ReadMade(bytes.NewReader(data))
		if err != nil {
			return
		}
		frame, err := Frame(made)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := ReadMade(bytes.NewReader(frame)); err != nil || again.ID != made.ID || len(again.Warnings) != len(made.Warnings) {
			t.Errorf("%+v became %+v, %v", made, again, err)
		}
	})
}
