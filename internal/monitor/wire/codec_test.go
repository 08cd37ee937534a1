package wire

import (
	"bytes"
	"reflect"
	"testing"
)

func samples() []Message {
	return []Message{
		{Kind: Launch, ID: 7, Program: []byte("program"), Flags: Durable | OOMEventFD, Stdio: Terminal | Stdin, Rows: 24, Cols: 80, Folder: "/f", LogPath: "/l",
			LogSize: 20e6, LogFiles: 3, LogBuffer: 1 << 20, ExitPath: "/x", OOMPath: "/o", Attached: []Attachment{{Number: 1, Flags: WantStdout, Preread: []byte("abc"), DetachKeys: []byte{16, 17}}}},
		{Kind: Exec, ID: 8, Session: "s", Program: []byte("p"), Stdio: AttachOnly},
		{Kind: Attach, ID: 9, Session: "s", Attached: []Attachment{{Number: 2, Flags: Framed, Preread: []byte{}, DetachKeys: []byte{}}}},
		{Kind: Resize, ID: 10, Rows: 1, Cols: 2},
		{Kind: CloseStdin, ID: 11, Session: "x"}, {Kind: Forget, ID: 1}, {Kind: Quit, ID: 12}, {Kind: State, ID: 13}, {Kind: Done, ID: 13},
		{Kind: Started, ID: 7, PID: 4711}, {Kind: Failed, ID: 7, Errno: 2, Text: "open"},
		{Kind: Process, ID: 1, Session: "s", PID: 5, Stdio: Stdin, Exit: Ran, Code: 137, Signal: 9, Time: 123456789},
		{Kind: Exited, Session: "s", Exit: Ran | OOMKilled}, {Kind: Ended, Number: 3, Exit: Detached}, {Kind: OOM}, {Kind: Again, ID: 14}, {Kind: Idle},
	}
}

func TestEveryKindTravelsBothWays(t *testing.T) {
	seen := map[Kind]bool{}
	for _, m := range samples() {
		seen[m.Kind] = true
		if m.Kind == Launch || m.Kind == Exec {
			if m.Program == nil {
				m.Program = []byte{}
			}
		}
		var got Message
		b := Append(nil, &m)
		if !Decode(b, &got) {
			t.Fatalf("kind %d does not decode", m.Kind)
		}
		if !reflect.DeepEqual(m, got) {
			t.Errorf("kind %d:\n got %+v\nwant %+v", m.Kind, got, m)
		}
		for i := range b {
			Decode(b[:i], &got) // every truncation is refused without a panic
		}
	}
	for k := Kind(1); k < kinds; k++ {
		if !seen[k] {
			t.Errorf("no sample of kind %d", k)
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, m := range samples() {
		f.Add(Append(nil, &m))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var m, again Message
		if !Decode(b, &m) {
			return
		}
		if enc := Append(nil, &m); !bytes.Equal(enc, b) || !Decode(enc, &again) {
			t.Fatalf("%x decodes but encodes to %x", b, enc)
		}
	})
}
