package logs_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"corten.dev/corten/internal/logs"
	"corten.dev/corten/internal/logs/logfile"
)

func writer(t testing.TB, o logfile.Options) *logfile.Writer {
	t.Helper()
	w, err := logfile.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	return w
}

var all = logs.ReadOptions{Tail: -1, Stdout: true, Stderr: true}

func lines(t testing.TB, dir string, o logs.ReadOptions) (got []string) {
	t.Helper()
	l, err := logs.Open(context.Background(), dir, o, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for {
		line, err := l.Next(context.Background())
		if err == io.EOF {
			return got
		}
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, fmt.Sprintf("%d %d %s", line.Stream, line.Time.UnixNano(), line.Data))
	}
}

// copied reads the same through Copy, framed, and gives what each stream said.
func copied(t testing.TB, dir string, o logs.ReadOptions) (streams [3]string) {
	t.Helper()
	l, err := logs.Open(context.Background(), dir, o, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var b bytes.Buffer
	if err := l.Copy(context.Background(), &b, logs.CopyOptions{Framed: true}); err != nil {
		t.Fatal(err)
	}
	for raw := b.Bytes(); len(raw) > 0; {
		if len(raw) < 8 {
			t.Fatalf("torn frame %x", raw)
		}
		n := int(raw[4])<<24 | int(raw[5])<<16 | int(raw[6])<<8 | int(raw[7])
		streams[raw[0]] += string(raw[8 : 8+n])
		raw = raw[8+n:]
	}
	return streams
}

// model is what a log must say: lines in the order in which they were completed.
type model struct {
	done []string
	open [3]string
	at   [3]int64
}

func (m *model) write(stream int, ns int64, data string) {
	for len(data) > 0 {
		if m.open[stream] == "" {
			m.at[stream] = ns
		}
		i := strings.IndexByte(data, '\n')
		if i < 0 {
			m.open[stream] += data
			return
		}
		m.done = append(m.done, fmt.Sprintf("%d %d %s", stream, m.at[stream], m.open[stream]+data[:i+1]))
		m.open[stream] = ""
		data = data[i+1:]
	}
}

func (m *model) lines() []string {
	out := append([]string(nil), m.done...)
	order := []int{1, 2}
	if m.at[2] < m.at[1] {
		order = []int{2, 1}
	}
	for _, s := range order {
		if m.open[s] != "" {
			out = append(out, fmt.Sprintf("%d %d %s", s, m.at[s], m.open[s]))
		}
	}
	return out
}

// play writes random pieces to a log and to the model.
func play(t testing.TB, rnd *rand.Rand, dir string, o logfile.Options, steps int) *model {
	m := &model{}
	o.Path = dir
	w, err := logfile.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	ns := int64(1000)
	for range steps {
		ns += 1 + rnd.Int64N(1000)
		var b strings.Builder
		for range rnd.IntN(4) {
			fmt.Fprintf(&b, "%d%s\n", rnd.Int(), strings.Repeat("x", rnd.IntN(60)))
		}
		if rnd.IntN(3) == 0 {
			fmt.Fprintf(&b, "part%d", rnd.IntN(1000))
		}
		if b.Len() == 0 {
			continue
		}
		stream := 1 + rnd.IntN(2)
		if err := w.Write(stream, ns, []byte(b.String())); err != nil {
			t.Fatal(err)
		}
		m.write(stream, ns, b.String())
		if rnd.IntN(40) == 0 { // a restart of the container
			w.Close()
			if w, err = logfile.Open(o); err != nil {
				t.Fatal(err)
			}
		}
	}
	w.Close()
	return m
}

func equal(t testing.TB, what string, got, want []string) {
	t.Helper()
	for i := 0; i < len(got) || i < len(want); i++ {
		if i >= len(got) || i >= len(want) || got[i] != want[i] {
			g, w := "nothing", "nothing"
			if i < len(got) {
				g = got[i]
			}
			if i < len(want) {
				w = want[i]
			}
			t.Fatalf("%s: line %d of %d (want %d):\n got %q\nwant %q", what, i, len(got), len(want), g, w)
		}
	}
}

// Rotation splits, doubles and loses no line; the oldest files go as a whole.
func TestLinesInAreLinesOut(t *testing.T) {
	for seed := range uint64(150) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		dir := filepath.Join(t.TempDir(), "log")
		files := 1000
		if seed%3 == 0 {
			files = 3
		}
		m := play(t, rnd, dir, logfile.Options{MaxSize: 300 + rnd.Int64N(3000), MaxFiles: files}, 200)
		want := m.lines()
		got := lines(t, dir, all)
		what := fmt.Sprint("seed ", seed)
		if files == 3 { // the end of all that was said
			if len(got) == 0 || len(got) > len(want) {
				t.Fatal(what, len(got), len(want))
			}
			want = withoutOrphans(want, got)
		}
		equal(t, what, got, want)
		for range 5 {
			tail := rnd.IntN(len(want) + 2)
			o := all
			o.Tail = tail
			equal(t, fmt.Sprint(what, " tail ", tail), lines(t, dir, o), want[max(len(want)-tail, 0):])
			one := copied(t, dir, o)
			var text [3]string
			for _, l := range want[max(len(want)-tail, 0):] {
				text[l[0]-'0'] += l[strings.IndexByte(l[2:], ' ')+3:]
			}
			if one != text {
				t.Fatalf("%s tail %d: copy\n got %q\nwant %q", what, tail, one, text)
			}
		}
	}
}

// withoutOrphans is the end of want that begins with got's first line, without what may be missing there: a line of the other stream whose beginning went with an
// older file.
func withoutOrphans(want, got []string) []string {
	i := len(want) - 1
	for i > 0 && want[i] != got[0] {
		i--
	}
	want = append([]string(nil), want[i:]...)
	for k := range want {
		if len(want) > len(got) && (k >= len(got) || want[k] != got[k]) {
			return append(want[:k], want[k+1:]...)
		}
	}
	return want
}

// The index finds the place of a tail and of a time without reading what is before.
func TestIndex(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "log")
	w := writer(t, logfile.Options{Path: dir, MaxSize: 1 << 20, MaxFiles: 8})
	m := &model{}
	for i := range 60000 {
		s := fmt.Sprintf("line %d of a log that is long enough for several index entries\n", i)
		ns := int64(i+1) * 1000
		if err := w.Write(1+i%2, ns, []byte(s)); err != nil {
			t.Fatal(err)
		}
		m.write(1+i%2, ns, s)
	}
	want := m.lines()
	for _, tail := range []int{0, 1, 2, 999, 20000, 59999, 60000, 70000} {
		o := all
		o.Tail = tail
		equal(t, fmt.Sprint("tail ", tail), lines(t, dir, o), want[max(len(want)-tail, 0):])
	}
	for _, i := range []int{0, 1, 17, 30000, 59999} {
		o := all
		o.Since = time.Unix(0, int64(i+1)*1000)
		equal(t, fmt.Sprint("since ", i), lines(t, dir, o), want[i:])
		o.Until = time.Unix(0, int64(i+50)*1000)
		equal(t, fmt.Sprint("until ", i), lines(t, dir, o), want[i:min(i+50, len(want))])
	}
	o := all
	o.Stdout = false
	o.Tail = 3
	if got := lines(t, dir, o); len(got) != 3 || got[2] != want[59999] || got[0] != want[59995] {
		t.Fatal(got)
	}
	// A lost index costs time, nothing else.
	for _, f := range must(filepath.Glob(filepath.Join(dir, "*.idx"))) {
		os.Truncate(f, 50)
	}
	o = all
	o.Tail = 20000
	equal(t, "without an index", lines(t, dir, o), want[40000:])
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// A power cut may tear the last record; it is not shown, and the next writer cuts it off.
func TestTornRecord(t *testing.T) {
	for cut := int64(1); cut < 30; cut += 3 {
		dir := filepath.Join(t.TempDir(), "log")
		w := writer(t, logfile.Options{Path: dir})
		w.Write(1, 1, []byte("whole\n"))
		w.Write(1, 2, []byte("torn away\n"))
		w.Close()
		name := filepath.Join(dir, "00000001.log")
		st, _ := os.Stat(name)
		os.Truncate(name, st.Size()-min(cut, 29))
		equal(t, "torn", lines(t, dir, all), []string{"1 1 whole\n"})
		w = writer(t, logfile.Options{Path: dir})
		w.Write(2, 3, []byte("next\n"))
		w.Close()
		equal(t, "after", lines(t, dir, all), []string{"1 1 whole\n", "2 3 next\n"})
	}
}

// A power cut may also keep a later page and lose an earlier one: what stands behind the torn record must not come back behind the next one.
func TestGhostBehindATornRecord(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "log")
	w := writer(t, logfile.Options{Path: dir})
	w.Write(1, 1, []byte("whole\n"))
	w.Write(1, 2, []byte("torn\n"))
	w.Write(1, 3, []byte("ghost\n"))
	w.Close()
	name := filepath.Join(dir, "00000001.log")
	raw := must(os.ReadFile(name))
	raw[bytes.Index(raw, []byte("torn"))]++
	if err := os.WriteFile(name, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	equal(t, "torn", lines(t, dir, all), []string{"1 1 whole\n"})
	w = writer(t, logfile.Options{Path: dir})
	w.Write(2, 4, []byte("next\n")) // as long as the torn one
	w.Close()
	equal(t, "after", lines(t, dir, all), []string{"1 1 whole\n", "2 4 next\n"})
}

// Files are cut where a line ends, so that the oldest one takes no half of a line with it.
func TestFilesEndWhereALineEnds(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "log")
	w := writer(t, logfile.Options{Path: dir, MaxSize: 1000, MaxFiles: 100})
	for i := range 50 {
		w.Write(1, int64(i+1), []byte(strings.Repeat(fmt.Sprintf("line %d\n", i), 40)))
	}
	w.Close()
	files := must(filepath.Glob(filepath.Join(dir, "*.log")))
	if len(files) < 10 {
		t.Fatalf("only %d files", len(files))
	}
	for _, name := range files {
		raw := must(os.ReadFile(name))
		if _, p, ok := logfile.DecodeHeader(raw); !ok || p.Mid != 0 || len(raw) > 1000 || raw[len(raw)-1] != '\n' {
			t.Errorf("%s: %t, in the middle of %b, %d bytes, ends with %q", filepath.Base(name), ok, p.Mid, len(raw), raw[len(raw)-1])
		}
	}
}

// Who asks for no bounds gets three files of 20 MB, whatever the container says.
func TestDefaultBounds(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "log")
	w := writer(t, logfile.Options{Path: dir})
	piece := []byte(strings.Repeat("all work and no play makes jack a dull boy\n", 20000))
	for said := 0; said < 85e6; said += len(piece) {
		if err := w.Write(1, 1, piece); err != nil {
			t.Fatal(err)
		}
	}
	files := must(filepath.Glob(filepath.Join(dir, "*.log")))
	if len(files) != 3 || filepath.Base(files[2]) != "00000005.log" {
		t.Errorf("after 85 MB there are %q", files)
	}
	for _, name := range files {
		if st := must(os.Stat(name)); st.Size() > 20e6 {
			t.Errorf("%s has %d bytes", filepath.Base(name), st.Size())
		}
	}
}

func TestFollow(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "log")
	done := make(chan struct{})
	o := all
	o.Follow = true
	l, err := logs.Open(context.Background(), dir, o, done) // before the first start of the container
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	const n = 3000
	go func() {
		w, err := logfile.Open(logfile.Options{Path: dir, MaxSize: 9000, MaxFiles: 1000})
		if err != nil {
			t.Error(err)
		}
		for i := range n {
			w.Write(1, int64(i+1), fmt.Appendf(nil, "line %d\nli", i))
			w.Write(1, int64(i+1), []byte("ne\n"))
			if i%500 == 0 {
				time.Sleep(5 * time.Millisecond)
			}
		}
		w.Close()
		close(done)
	}()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	for i := 0; ; i++ {
		line, err := l.Next(ctx)
		if err == io.EOF && i == 2*n {
			break
		}
		want := "line\n"
		if i%2 == 0 {
			want = fmt.Sprintf("line %d\n", i/2)
		}
		if err != nil || string(line.Data) != want {
			t.Fatalf("%d: %q %v, want %q", i, line.Data, err, want)
		}
	}
	ctx2, cancel2 := context.WithCancel(context.Background())
	cancel2()
	l2, err := logs.Open(ctx2, dir, logs.ReadOptions{Follow: true, Tail: 0, Stdout: true}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer l2.Close()
	if _, err := l2.Next(ctx2); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
}

// `logs --tail 1` printed two lines, or more, of a container that was writing: what came between finding the last line and reading it was printed too.
func TestTailOfALogThatGrows(t *testing.T) {
	dir := t.TempDir()
	w := writer(t, logfile.Options{Path: dir, MaxSize: 64 << 10, MaxFiles: 3})
	ctx, cancel := context.WithCancel(t.Context())
	var writing sync.WaitGroup
	writing.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			w.Write(logs.Stdout, int64(i), []byte(fmt.Sprintf("line %d\n", i)))
		}
	})
	defer writing.Wait()
	defer cancel()
	for range 100 {
		for tail := range 3 {
			if got := lines(t, dir, logs.ReadOptions{Stdout: true, Tail: tail}); len(got) > tail {
				t.Fatalf("the last %d lines: %q", tail, got)
			}
			if got := copied(t, dir, logs.ReadOptions{Stdout: true, Tail: tail})[logs.Stdout]; strings.Count(got, "\n") > tail {
				t.Fatalf("the last %d lines: %q", tail, got)
			}
		}
	}
}

func TestTimestampsAndDetails(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "log")
	w := writer(t, logfile.Options{Path: dir})
	at := time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC)
	w.Write(1, at.UnixNano(), []byte("a\nb\n"))
	l, err := logs.Open(context.Background(), dir, all, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var b bytes.Buffer
	if err := l.Copy(context.Background(), &b, logs.CopyOptions{Timestamps: true, Details: "k=v "}); err != nil {
		t.Fatal(err)
	}
	if want := "2026-01-02T03:04:05.000006000Z k=v a\n2026-01-02T03:04:05.000006000Z k=v b\n"; b.String() != want {
		t.Fatalf("%q", b.String())
	}
}

// A line of any length is kept; a reader gives it in pieces of 1 MiB.
func TestLongLine(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "log")
	w := writer(t, logfile.Options{Path: dir, MaxSize: 1 << 20, MaxFiles: 100})
	long := strings.Repeat("0123456789", 300_000)
	for i := 0; i < len(long); i += 100_000 {
		w.Write(1, 5, []byte(long[i:i+100_000]))
	}
	w.Write(1, 6, []byte("\nnext\n"))
	got := lines(t, dir, all)
	joined := ""
	for _, l := range got {
		joined += l[4:]
	}
	if joined != long+"\nnext\n" || len(got) != 4 {
		t.Fatal(len(got), len(joined))
	}
	if c := copied(t, dir, all); c[1] != joined {
		t.Fatal(len(c[1]))
	}
}

func FuzzReader(f *testing.F) {
	dir := filepath.Join(f.TempDir(), "log")
	w := writer(f, logfile.Options{Path: dir})
	w.Write(1, 1, []byte("whole\nhalf"))
	w.Write(2, 2, []byte("other\n"))
	b, _ := os.ReadFile(filepath.Join(dir, "00000001.log"))
	f.Add(b, []byte{})
	f.Fuzz(func(t *testing.T, log, idx []byte) {
		dir := t.TempDir()
		os.WriteFile(filepath.Join(dir, "00000001.log"), log, 0o600)
		os.WriteFile(filepath.Join(dir, "00000001.idx"), idx, 0o600)
		lines(t, dir, all)
		o := all
		o.Tail = 2
		copied(t, dir, o)
		w, err := logfile.Open(logfile.Options{Path: dir})
		if err != nil {
			t.Fatal(err)
		}
		w.Write(1, 9, []byte("\nafter\n"))
		w.Close()
		if got := lines(t, dir, all); len(got) == 0 || !strings.HasSuffix(got[len(got)-1], "after\n") {
			t.Fatalf("%q", got)
		}
	})
}

func BenchmarkRead(b *testing.B) {
	dir := filepath.Join(b.TempDir(), "log")
	w := writer(b, logfile.Options{Path: dir, MaxSize: 30e6, MaxFiles: 4})
	block := bytes.Repeat([]byte(strings.Repeat("x", 79)+"\n"), 800)
	for i := range 1250 {
		w.Write(1, int64(i), block)
	}
	for _, c := range []struct {
		name string
		o    logs.CopyOptions
	}{{"framed", logs.CopyOptions{Framed: true}}, {"timestamps", logs.CopyOptions{Framed: true, Timestamps: true}}, {"next", logs.CopyOptions{}}} {
		b.Run(c.name, func(b *testing.B) {
			b.SetBytes(80e6)
			for b.Loop() {
				l, err := logs.Open(context.Background(), dir, all, nil)
				if err != nil {
					b.Fatal(err)
				}
				n := 0
				if c.name == "next" {
					for ; ; n++ {
						if _, err := l.Next(context.Background()); err != nil {
							break
						}
					}
				} else if err := l.Copy(context.Background(), io.Discard, c.o); err != nil {
					b.Fatal(err)
				}
				l.Close()
			}
		})
	}
}
