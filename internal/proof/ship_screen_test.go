package proof

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/enginetest"
)

// sequence is what a program may send to move about on a terminal: up, down, back to the left, and erase the line.
var sequence = regexp.MustCompile("^\x1b\\[([0-9]*)([A-Za-z])")

// rendered is what stands on a terminal in the end.
func rendered(t *testing.T, text string) []string {
	t.Helper()
	var lines [][]rune
	row, col := 0, 0
	for len(text) > 0 {
		if m := sequence.FindStringSubmatch(text); m != nil {
			text = text[len(m[0]):]
			n, _ := strconv.Atoi(m[1])
			switch m[2] {
			case "A":
				if row -= max(n, 1); row < 0 {
					t.Fatalf("the cursor left the screen at the top")
				}
			case "B":
				row += max(n, 1)
			case "K":
				if n != 2 {
					t.Fatalf("unknown: %q", m[0])
				}
				if row < len(lines) {
					lines[row] = nil
				}
			default:
				t.Fatalf("unknown: %q", m[0])
			}
			continue
		}
		r := []rune(text)[0]
		text = text[len(string(r)):]
		switch {
		case r == '\n':
			row++
		case r == '\r':
			col = 0
		default:
			for len(lines) <= row {
				lines = append(lines, nil)
			}
			for len(lines[row]) <= col {
				lines[row] = append(lines[row], ' ')
			}
			lines[row][col] = r
			col++
		}
	}
	var all []string
	for _, l := range lines {
		all = append(all, strings.TrimRight(string(l), " "))
	}
	return all
}

// Each client has images of its own, so that nothing is there of the other's; and which layer comes first is a matter of luck.
var (
	ofLayer = regexp.MustCompile(`^[0-9a-f]{12}: `)
	digests = regexp.MustCompile(`sha256:[0-9a-f]{64}`)
)

// ordered takes the names out, and puts the lines of layers together.
func ordered(lines []string, client string) []string {
	var layers, others []string
	for _, l := range lines {
		l = digests.ReplaceAllString(strings.ReplaceAll(l, "by-"+client, "by"), "sha256:…")
		if ofLayer.MatchString(l) {
			layers = append(layers, ofLayer.ReplaceAllString(l, "layer: "))
		} else {
			others = append(others, l)
		}
	}
	slices.Sort(layers)
	return slices.Concat(others, layers)
}

// A person who pulls and pushes at a terminal, and a program that does in a pipe, see with our command line what they see with docker's: the same lines stand there in the end.
func TestShipOnScreen(t *testing.T) {
	e := enginetest.New(t)
	e.Up()
	reg := enginetest.NewRegistry(t)
	way := newRoad(t, reg)
	const terminal, pipe = "ship/terminal/by-", "ship/pipe/by-"
	var seen [4][]string
	var told [4]string
	names := []string{"corten", "docker"}
	for _, name := range names {
		path, ok := clients(e)[name]
		if !ok {
			t.Skip("needs docker's command line (Debian: docker-cli)")
		}
		call := func(args ...string) *exec.Cmd {
			cmd := exec.Command(path, append([]string{"-H", e.Socket()}, args...)...)
			cmd.Env = append(os.Environ(), "HOME="+e.Dir, "TERM=xterm", "DOCKER_CLI_HINTS=false")
			return cmd
		}
		onTerminal := func(args ...string) []string {
			way.pace.Store(4 << 10) // long enough for bars
			defer way.pace.Store(0)
			s := onScreen(t, call(args...))
			if code := s.leaves(); code != 0 {
				t.Fatalf("%s %v ends with %d: %q", name, args, code, s.text.String())
			}
			if args[0] == "pull" && !regexp.MustCompile(`Downloading.* [0-9.]+[kM]?B/[0-9.]+MB`).MatchString(s.text.String()) {
				t.Errorf("%s: no progress: %q", name, s.text.String())
			}
			return rendered(t, s.text.String())
		}
		inPipe := func(args ...string) []string {
			out, err := call(args...).CombinedOutput()
			if err != nil {
				t.Fatalf("%s %v: %v %s", name, args, err, out)
			}
			if bytes.ContainsAny(out, "\x1b\r") {
				t.Errorf("%s %v draws in a pipe: %q", name, args, out)
			}
			return strings.Split(strings.TrimSuffix(string(out), "\n"), "\n")
		}
		compare := func(i int, what string, lines []string) {
			if told[i] = what; seen[i] == nil {
				seen[i] = ordered(lines, name)
			} else if got := ordered(lines, name); !slices.Equal(got, seen[i]) {
				t.Errorf("%s: %s shows\n%s\n%s shows\n%s", what, names[0], strings.Join(seen[i], "\n"), name, strings.Join(got, "\n"))
			}
		}
		for _, repo := range []string{terminal, pipe} {
			shipImage(t, reg.Addr, repo+name, "1", 2<<20, 1<<20, 300<<10)
		}
		from := way.addr() + "/"
		compare(0, "pull on a terminal", onTerminal("pull", from+terminal+name+":1"))
		compare(1, "pull in a pipe", inPipe("pull", from+pipe+name+":1"))
		to := strings.Replace(from, "127.0.0.1", "localhost", 1) + "new/" // another host's name, so that nothing can be mounted
		for _, repo := range []string{terminal, pipe} {
			e.Corten("tag", from+repo+name+":1", to+repo+name+":1")
		}
		compare(2, "push on a terminal", onTerminal("push", to+terminal+name+":1"))
		compare(3, "push in a pipe", inPipe("push", to+pipe+name+":1"))
	}
	for i, lines := range seen {
		t.Logf("%s:\n%s", told[i], strings.Join(lines, "\n"))
	}
}

// A password that is typed at login's prompt is not shown, and the terminal is as it was afterwards, also after a change of mind, with docker's command line and with ours.
func TestLoginOnScreen(t *testing.T) {
	e := enginetest.New(t)
	e.Up()
	users := filepath.Join(t.TempDir(), "users")
	add := exec.Command(filepath.Join(e.Bin, "cortend"), "registry", "htpasswd", "--file", users, "me")
	add.Stdin = strings.NewReader("s3cret\n")
	if out, err := add.CombinedOutput(); err != nil {
		t.Fatalf("htpasswd: %v: %s", err, out)
	}
	reg := enginetest.NewRegistry(t, "--htpasswd", users)
	for name, path := range clients(e) {
		home := t.TempDir()
		login := func() *screen {
			cmd := exec.Command(path, "-H", e.Socket(), "login", reg.Addr)
			cmd.Env = append(os.Environ(), "HOME="+home, "TERM=xterm")
			s := onScreen(t, cmd)
			s.types("", "Username: ")
			s.types("me\r", "Password: ")
			wait(t, "the echo to be off", func() bool { return !s.echoes() })
			return s
		}
		s := login()
		s.types("s3cret\r", "Login Succeeded")
		restored := s.echoes() // a terminal whose last program is gone has no settings
		if code := s.leaves(); code != 0 || strings.Contains(s.text.String(), "s3cret") || !restored {
			t.Errorf("%s: %d, restored %t: %q", name, code, restored, s.text.String())
		}
		file, err := os.ReadFile(filepath.Join(home, ".docker", "config.json"))
		if err != nil || !strings.Contains(string(file), reg.Addr) {
			t.Errorf("%s: %s %v", name, file, err)
		}
		if err := os.Remove(filepath.Join(home, ".docker", "config.json")); err != nil {
			t.Fatal(err)
		}
		s = login()
		s.types("nonsense\r", "unauthorized")
		if code := s.leaves(); code != 1 || strings.Contains(s.text.String(), "nonsense") {
			t.Errorf("%s: %d: %q", name, code, s.text.String())
		}
		s = login()
		s.types("s3c\x03", "")
		if code := s.leaves(); name == "corten" && code != 130 || strings.Contains(s.text.String(), "s3c") {
			t.Errorf("%s: %d: %q", name, code, s.text.String())
		}
		if _, err := os.Stat(filepath.Join(home, ".docker", "config.json")); err == nil {
			t.Errorf("%s keeps what the registry refused", name)
		}
	}
}

// echoes tells whether the terminal shows what is typed.
func (s *screen) echoes() bool {
	state, err := unix.IoctlGetTermios(int(s.master.Fd()), unix.TCGETS)
	if err != nil {
		s.t.Fatal(err)
	}
	return state.Lflag&unix.ECHO != 0
}

// An engine that is killed while it answers: the client says that it went away and what to do, in one line, and not how many bytes were missing.
func TestEngineGoesAway(t *testing.T) {
	e := enginetest.Start(t)
	reg := enginetest.NewRegistry(t)
	way := newRoad(t, reg)
	shipImage(t, reg.Addr, "ship/away", "1", 4<<20)
	e.Corten("run", "-d", "--name", "talker", enginetest.Busybox, "sh", "-c", "echo hello; sleep 1000")
	way.pace.Store(1 << 10)
	for _, args := range [][]string{{"pull", way.addr() + "/ship/away:1"}, {"logs", "-f", "talker"}} {
		cmd := e.Client(args...)
		var said bytes.Buffer
		cmd.Stderr = &said
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := out.Read(make([]byte, 1)); err != nil { // the answer has begun
			t.Fatal(err)
		}
		if args[0] == "pull" {
			wait(t, "the middle of a blob", func() bool { return way.blobs.Load() > 100<<10 })
		}
		e.Kill9()
		_, _ = io.Copy(io.Discard, out)
		err = cmd.Wait()
		if text := said.String(); err == nil || !strings.HasPrefix(text, "The Corten engine at "+e.Socket()+" went away ") || strings.Count(text, "\n") != 1 {
			t.Errorf("%v: %v %q", args, err, text)
		}
		e.Up()
	}
	way.pace.Store(0)
	e.Corten("pull", "-q", way.addr()+"/ship/away:1")
}
