package journald

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/logs/ship"
	"corten.dev/corten/internal/logs/shiptest"
)

// journal is the socket of a journal.
type journal struct {
	t    *testing.T
	path string
	conn *net.UnixConn

	mu      sync.Mutex // guards what follows
	entries []map[string]string
	files   int // how many came as memory files
}

func newJournal(t *testing.T) *journal {
	dir, err := os.MkdirTemp("", "jrn")
	if err != nil {
		t.Fatal(err)
	}
	j := &journal{t: t, path: filepath.Join(dir, "s")}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if j.conn, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: j.path, Net: "unixgram"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { j.conn.Close() })
	go j.read()
	return j
}

func (j *journal) read() {
	buf, oob := make([]byte, 1<<20), make([]byte, 1024)
	for {
		n, on, _, _, err := j.conn.ReadMsgUnix(buf, oob)
		if err != nil {
			return
		}
		b := buf[:n]
		file := on > 0
		if file {
			b = j.memory(oob[:on])
		}
		entry, err := parse(b)
		if err != nil {
			j.t.Error(err)
		}
		j.mu.Lock()
		j.entries = append(j.entries, entry)
		if file {
			j.files++
		}
		j.mu.Unlock()
	}
}

// memory reads a message that came as a descriptor, and looks at its seals, as the journal does.
func (j *journal) memory(oob []byte) []byte {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil || len(msgs) != 1 {
		j.t.Error(err)
		return nil
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 1 {
		j.t.Error(err)
		return nil
	}
	f := os.NewFile(uintptr(fds[0]), "message")
	defer f.Close()
	seals, err := unix.FcntlInt(f.Fd(), unix.F_GET_SEALS, 0)
	if want := unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE | unix.F_SEAL_SEAL; err != nil || seals != want {
		j.t.Errorf("seals %#x, want %#x (%v)", seals, want, err)
	}
	st, err := f.Stat()
	if err != nil {
		j.t.Error(err)
		return nil
	}
	b := make([]byte, st.Size())
	if _, err := f.ReadAt(b, 0); err != nil {
		j.t.Error(err)
	}
	return b
}

// parse reads the native protocol as systemd's documentation describes it (JOURNAL_NATIVE_PROTOCOL).
func parse(b []byte) (map[string]string, error) {
	entry := map[string]string{}
	for len(b) > 0 {
		i := bytes.IndexAny(b, "=\n")
		if i <= 0 {
			return entry, fmt.Errorf("no field in %.80q", b)
		}
		name := string(b[:i])
		if strings.Trim(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_") != "" || name[0] == '_' || len(name) > 64 {
			return entry, fmt.Errorf("field name %q", name)
		}
		var value []byte
		if b[i] == '=' {
			end := bytes.IndexByte(b, '\n')
			if end < 0 {
				return entry, fmt.Errorf("%s has no end", name)
			}
			value, b = b[i+1:end], b[end+1:]
		} else {
			if len(b) < i+9 {
				return entry, fmt.Errorf("%s has no length", name)
			}
			n := binary.LittleEndian.Uint64(b[i+1:])
			rest := b[i+9:]
			if n >= uint64(len(rest)) || rest[n] != '\n' {
				return entry, fmt.Errorf("%s of %d bytes has no end", name, n)
			}
			value, b = rest[:n], rest[n+1:]
		}
		entry[name] = string(value)
	}
	return entry, nil
}

func (j *journal) wait(n int) []map[string]string {
	j.t.Helper()
	shiptest.Eventually(j.t, "the entries", func() bool { j.mu.Lock(); defer j.mu.Unlock(); return len(j.entries) >= n })
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.entries
}

func TestFields(t *testing.T) {
	j := newJournal(t)
	msgs := shiptest.Messages("hello", "", "!oh no", "piece", "end", "a\rb")
	msgs[3].Ends, msgs[3].Partial = false, ship.Partial{ID: "abc", Ordinal: 1}
	msgs[4].Partial = ship.Partial{ID: "abc", Ordinal: 2, Last: true}
	info := shiptest.Info(map[string]string{"labels": "com.ex.a,_x-1,two lines", "env": "FOO", "tag": "{{.Name}}"})
	info.ContainerLabels = map[string]string{"com.ex.a": "va", "_x-1": "u", "two lines": "a\nb"}
	shiptest.Send(t, Driver{Socket: j.path}, info, msgs)
	id := strings.Repeat("0123456789abcdef", 4)
	for i, got := range j.wait(len(msgs)) {
		want := map[string]string{
			"MESSAGE": string(msgs[i].Line), "PRIORITY": "6", "SYSLOG_IDENTIFIER": "web", "CONTAINER_ID": id[:12], "CONTAINER_ID_FULL": id, "CONTAINER_NAME": "web", "CONTAINER_TAG": "web",
			"IMAGE_NAME": "app:1", "COM_EX_A": "va", "X_1": "u", "TWO_LINES": "a\nb", "FOO": "x y", "CONTAINER_LOG_EPOCH": id, "CONTAINER_LOG_ORDINAL": fmt.Sprint(i + 1),
			"SYSLOG_TIMESTAMP": msgs[i].Time.UTC().Format("2006-01-02T15:04:05.999999999Z"),
		}
		switch i {
		case 2:
			want["PRIORITY"] = "3"
		case 3:
			want["CONTAINER_PARTIAL_ID"], want["CONTAINER_PARTIAL_ORDINAL"], want["CONTAINER_PARTIAL_LAST"], want["CONTAINER_PARTIAL_MESSAGE"] = "abc", "1", "false", "true"
		case 4:
			want["CONTAINER_PARTIAL_ID"], want["CONTAINER_PARTIAL_ORDINAL"], want["CONTAINER_PARTIAL_LAST"] = "abc", "2", "true"
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("entry %d:\n got %v\nwant %v", i, got, want)
		}
	}
}

// What is too large for a datagram goes as a sealed memory file.
func TestLarge(t *testing.T) {
	j := newJournal(t)
	info := shiptest.Info(map[string]string{"labels": "big"})
	big := strings.Repeat("0123456789\n", 50_000)
	info.ContainerLabels = map[string]string{"big": big}
	shiptest.Send(t, Driver{Socket: j.path}, info, shiptest.Messages("hello"))
	if got := j.wait(1)[0]; got["BIG"] != big || got["MESSAGE"] != "hello" {
		t.Error("the large message came otherwise")
	}
	if j.files != 1 {
		t.Errorf("%d memory files", j.files)
	}
}

func TestNoJournal(t *testing.T) {
	if _, err := (Driver{Socket: "/does/not/exist"}).Open(t.Context(), shiptest.Info(nil)); err == nil || err.Error() != "journald is not enabled on this host: there is no /does/not/exist" {
		t.Errorf("got %v", err)
	}
	j := newJournal(t)
	dest := shiptest.Send(t, Driver{Socket: j.path}, shiptest.Info(nil), shiptest.Messages("one"))
	j.wait(1)
	j.conn.Close()
	if n, err := dest.Send(t.Context(), shiptest.Messages("two")); n != 0 || err == nil {
		t.Errorf("%d %v", n, err)
	}
}

func FuzzFieldName(f *testing.F) {
	f.Add("com.example/x")
	f.Fuzz(func(t *testing.T, s string) {
		name := fieldName(s)
		if strings.Trim(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_") != "" || strings.HasPrefix(name, "_") {
			t.Errorf("%q became %q", s, name)
		}
	})
}
