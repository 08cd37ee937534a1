package shiptest

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
)

// Logger is a log plugin: it listens on a socket and reads the pipes that it is told of.
type Logger struct {
	t testing.TB

	mu      sync.Mutex // guards what follows
	refuse  string
	started []map[string]any
	stopped []string
	entries []string
	pipe    *os.File
}

// NewLogger makes the plugin "logger" in a folder where plugins are looked for.
func NewLogger(t testing.TB, dir string) *Logger {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	l := &Logger{t: t}
	sock, err := net.Listen("unix", filepath.Join(dir, "logger.sock"))
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(l.serve)}
	go srv.Serve(sock)
	t.Cleanup(func() { srv.Close() })
	return l
}

func (l *Logger) serve(w http.ResponseWriter, r *http.Request) {
	var in map[string]any
	_ = json.NewDecoder(r.Body).Decode(&in) // Activate has no body
	switch r.URL.Path {
	case "/Plugin.Activate":
		fmt.Fprint(w, `{"Implements":["LogDriver"]}`)
	case "/LogDriver.StartLogging":
		l.mu.Lock()
		l.started = append(l.started, in)
		refuse := l.refuse
		l.mu.Unlock()
		if refuse != "" {
			fmt.Fprintf(w, `{"Err":%q}`, refuse)
			return
		}
		f, err := os.Open(in["File"].(string)) // this waits for the writer, as plugins do
		if err != nil {
			l.t.Error(err)
		}
		l.mu.Lock()
		l.pipe = f
		l.mu.Unlock()
		go l.read(f)
		fmt.Fprint(w, `{"Err":""}`)
	case "/LogDriver.StopLogging":
		l.mu.Lock()
		l.stopped = append(l.stopped, in["File"].(string))
		l.mu.Unlock()
		fmt.Fprint(w, `{"Err":""}`)
	default:
		http.NotFound(w, r)
	}
}

// read decodes LogEntry messages with the protocol buffers' own package.
func (l *Logger) read(f *os.File) {
	defer f.Close()
	for {
		var head [4]byte
		if _, err := io.ReadFull(f, head[:]); err != nil {
			return
		}
		b := make([]byte, binary.BigEndian.Uint32(head[:]))
		if _, err := io.ReadFull(f, b); err != nil {
			return
		}
		entry := describe(l.t, b)
		l.mu.Lock()
		l.entries = append(l.entries, entry)
		l.mu.Unlock()
	}
}

func describe(t testing.TB, b []byte) string {
	var out []string
	for len(b) > 0 {
		num, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			t.Errorf("bad tag in % x", b)
			return ""
		}
		b = b[n:]
		if kind == protowire.VarintType {
			v, n := protowire.ConsumeVarint(b)
			out, b = append(out, fmt.Sprintf("%d=%d", num, v)), b[max(n, 1):]
			continue
		}
		v, n := protowire.ConsumeBytes(b)
		if n < 0 {
			t.Errorf("bad field %d", num)
			return ""
		}
		b = b[n:]
		if num == 5 {
			out = append(out, "5={"+describe(t, v)+"}")
		} else {
			out = append(out, fmt.Sprintf("%d=%s", num, v))
		}
	}
	return strings.Join(out, " ")
}

// Said is every entry that came, with the fields of the protocol buffer by number.
func (l *Logger) Said() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.entries, "\n")
}

// Started is what StartLogging was called with.
func (l *Logger) Started() []map[string]any {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]map[string]any{}, l.started...)
}

// Stopped names the pipes that StopLogging was called for.
func (l *Logger) Stopped() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]string{}, l.stopped...)
}

// Refuse has StartLogging answer with an error.
func (l *Logger) Refuse(why string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refuse = why
}

// HangUp has the plugin close the pipe that it reads.
func (l *Logger) HangUp() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pipe.Close()
}
