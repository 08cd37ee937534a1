package cli

import (
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// barrier is an engine that answers requests other than pings only when so many of them are there, the last one first.
type barrier struct {
	most int

	mu      sync.Mutex
	waiting []chan struct{}
	order   []string
}

func (b *barrier) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/_ping" {
		w.Header().Set("Api-Version", "1.50")
		return
	}
	name := strings.Split(r.URL.Path, "/")[3]
	mine := make(chan struct{})
	b.mu.Lock()
	b.order = append(b.order, name)
	b.waiting = append(b.waiting, mine)
	if len(b.waiting) == b.most {
		close(b.waiting[b.most-1])
	}
	b.mu.Unlock()
	select {
	case <-mine:
	case <-time.After(30 * time.Second):
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	defer func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if i := len(b.waiting) - 2; i >= 0 {
			b.waiting = b.waiting[:i+1]
			close(b.waiting[i])
		}
	}()
	if name == "nobody" {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusNotFound)
		_, _ = io.WriteString(w, `{"message":"No such container: nobody"}`)
		return
	}
	if strings.HasSuffix(r.URL.Path, "/wait") {
		_, _ = io.WriteString(w, `{"StatusCode":`+name+`}`)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// Ten containers that do not listen to SIGTERM took a hundred seconds to stop, because each was asked after the one before had ended; docker asks for fifty at a time. What is printed has the order
// of the command line all the same.
func TestManyAtOnce(t *testing.T) {
	for _, c := range []struct {
		line, out, errOut string
		code              int
	}{
		{"stop a b c d", "a\nb\nc\nd\n", "", 0},
		{"rm -f a b nobody d", "a\nb\nd\n", "Error response from daemon: No such container: nobody\n", 0},
		{"kill a nobody c", "a\nc\n", "Error response from daemon: No such container: nobody\n", 1},
		{"pause a b", "a\nb\n", "", 0},
		{"wait 3 0 1", "3\n0\n1\n", "", 0},
	} {
		t.Run(c.line, func(t *testing.T) {
			words := strings.Fields(c.line)
			b := &barrier{most: len(words) - 1}
			if words[1] == "-f" {
				b.most--
			}
			f := serveFake(t, b)
			out, errOut, code := f.run("", words...)
			if out != c.out || errOut != c.errOut || code != c.code {
				t.Errorf("exit %d, %q, %q; want %d, %q, %q", code, out, errOut, c.code, c.out, c.errOut)
			}
		})
	}
}

// Restarted one by one: a container may live in the network of the one before. Networks are removed so, too: one may be the configuration of the one before, which failed now and then.
func TestInTurn(t *testing.T) {
	for _, line := range []string{"restart a b c", "network rm a b c"} {
		t.Run(line, func(t *testing.T) { askedInTurn(t, line) })
	}
}

func askedInTurn(t *testing.T, line string) {
	var mu sync.Mutex
	var order string
	var inside, most int
	f := serveFake(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/_ping" {
			return
		}
		mu.Lock()
		order += strings.Split(r.URL.Path, "/")[3]
		inside++
		most = max(most, inside)
		mu.Unlock()
		time.Sleep(20 * time.Millisecond) // for another one to come in, if one does
		mu.Lock()
		inside--
		mu.Unlock()
		w.WriteHeader(http.StatusNoContent)
	}))
	if out, errOut, code := f.run("", strings.Fields(line)...); code != 0 || out != "a\nb\nc\n" {
		t.Errorf("exit %d, %q, %q", code, out, errOut)
	}
	if order != "abc" || most != 1 {
		t.Errorf("asked in the order %s, %d at a time", order, most)
	}
}

func serveFake(t *testing.T, h http.Handler) *fakeEngine {
	t.Helper()
	f := &fakeEngine{socket: filepath.Join(t.TempDir(), "s")}
	l, err := net.Listen("unix", f.socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: h}
	go srv.Serve(l) //nolint:errcheck // ends with the test
	t.Cleanup(func() { _ = srv.Close() })
	return f
}
