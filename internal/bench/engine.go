package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"corten.dev/corten/internal/busyboxtree"
)

// ErrSkip is returned for rows that a contestant cannot do.
var ErrSkip = errors.New("not applicable")

// Engine is a contestant with docker's command line: Corten, Docker, or Podman.
type Engine struct {
	Label  string
	Client []string // command and leading arguments
	Env    []string
	// Daemon starts the engine and returns its main process; nil when there is none (podman).
	Daemon func(ctx context.Context) (*exec.Cmd, error)
	// Cleanup takes away what Daemon needed (bridge, folders).
	Cleanup func() error
	Busybox string // path of a static busybox
	Dir     string // its folders lie here

	daemon *exec.Cmd
}

const benchImage = "corten-bench-busybox"

// Name implements Contestant.
func (e *Engine) Name() string { return e.Label }

// Start implements Contestant.
func (e *Engine) Start(ctx context.Context) error {
	if err := e.StartOnly(ctx); err != nil {
		return err
	}
	image, err := busyboxtree.Tar(e.Busybox)
	if err != nil {
		return err
	}
	if err := e.run(bytes.NewReader(image), io.Discard, "import", "-", benchImage); err != nil {
		return err
	}
	return e.run(nil, io.Discard, "run", "--rm", benchImage, "true")
}

// StartOnly starts the engine and waits until it answers.
func (e *Engine) StartOnly(ctx context.Context) error {
	if _, err := exec.LookPath(e.Client[0]); err != nil {
		return errors.New("not installed")
	}
	if e.Daemon != nil {
		cmd, err := e.Daemon(ctx)
		if err != nil {
			return err
		}
		e.daemon = cmd
	}
	deadline := time.Now().Add(30 * time.Second)
	for {
		err := e.run(nil, io.Discard, "version")
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("no answer after 30 s: %w", err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// Do runs one command of the client.
func (e *Engine) Do(args ...string) error { return e.run(nil, io.Discard, args...) }

// Stop implements Contestant.
func (e *Engine) Stop() error {
	err := e.halt()
	if e.Cleanup != nil {
		err = errors.Join(err, e.Cleanup())
	}
	return err
}

// halt ends the engine and leaves what it has, for one that follows.
func (e *Engine) halt() (err error) {
	if e.daemon == nil {
		return nil
	}
	if serr := e.daemon.Process.Signal(syscall.SIGTERM); serr != nil {
		err = serr
	}
	if werr := e.daemon.Wait(); werr != nil && !errors.As(werr, new(*exec.ExitError)) {
		err = errors.Join(err, werr)
	}
	e.daemon = nil
	return err
}

func (e *Engine) run(in io.Reader, out io.Writer, args ...string) error {
	cmd := exec.Command(e.Client[0], append(e.Client[1:len(e.Client):len(e.Client)], args...)...)
	cmd.Env = append(os.Environ(), e.Env...)
	var stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, out, &stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", e.Label, args[0], err, cause(stderr.String()))
	}
	return nil
}

// cause is the line of what a client said that tells why: builds show lines of the Dockerfile before it, others how to get help behind it.
func cause(said string) string {
	first, _, _ := strings.Cut(strings.TrimSpace(said), "\n")
	for line := range strings.Lines(said) {
		if strings.HasPrefix(strings.ToLower(line), "error") {
			return strings.TrimSpace(line)
		}
	}
	return first
}

// Prepare implements Contestant.
func (e *Engine) Prepare(_ context.Context, row string) (timed, after, done func() error, err error) {
	name := "corten-bench-" + row
	remove := func() error { return e.run(nil, io.Discard, "rm", "-f", name) }
	switch row {
	case "run-bridge":
		return func() error { return e.run(nil, nil, "run", "--rm", benchImage, "true") }, nil, nil, nil
	case "run-none":
		return func() error { return e.run(nil, nil, "run", "--rm", "--network", "none", benchImage, "true") }, nil, nil, nil
	case "exec":
		err = e.run(nil, io.Discard, "run", "-d", "--name", name, benchImage, "sleep", "100000")
		return func() error { return e.run(nil, nil, "exec", name, "true") }, nil, remove, err
	case "ps":
		return func() error { return e.run(nil, io.Discard, "ps") }, nil, nil, nil
	case "version":
		return func() error { return e.run(nil, io.Discard, "version") }, nil, nil, nil
	case "serial20", "parallel20":
		width := 1
		if row == "parallel20" {
			width = 8
		}
		return func() error { return e.many(20, width) }, func() error { return e.removeMany(20) }, nil, nil
	case "output-run":
		return func() error { return e.output(name) }, remove, nil, nil
	case "output-logs":
		if err = e.output(name); err != nil {
			return nil, nil, remove, err
		}
		return func() error { return e.count("logs", name) }, nil, remove, nil
	}
	return nil, nil, nil, ErrSkip
}

func manyName(i int) string { return fmt.Sprintf("corten-bench-many-%d", i) }

// many starts n containers, width at a time.
func (e *Engine) many(n, width int) error {
	slots := make(chan struct{}, width)
	failures := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		slots <- struct{}{}
		wg.Add(1)
		go func() {
			defer wg.Done()
			failures[i] = e.run(nil, io.Discard, "run", "-d", "--name", manyName(i), benchImage, "sleep", "100000")
			<-slots
		}()
	}
	wg.Wait()
	return errors.Join(failures...)
}

func (e *Engine) removeMany(n int) error {
	if n == 0 {
		return nil
	}
	args := []string{"rm", "-f"}
	for i := range n {
		args = append(args, manyName(i))
	}
	return e.run(nil, io.Discard, args...)
}

const (
	outputLines = 1_000_000
	outputLine  = "a line of eighty bytes, as long as a line of an ordinary log of a server is, ok."
)

// output sends 10^6 lines of 80 bytes (81 with the newline) through run.
func (e *Engine) output(name string) error {
	return e.count("run", "--name", name, "--log-opt", "max-size=200m", benchImage, "sh", "-c", fmt.Sprintf("yes '%s' | head -n %d", outputLine[:79], outputLines))
}

func (e *Engine) count(args ...string) error {
	var n counter
	if err := e.run(nil, &n, args...); err != nil {
		return err
	}
	if want := counter(outputLines * 80); n != want {
		return fmt.Errorf("%s %s: %d bytes came, %d were written", e.Label, args[0], n, want)
	}
	return nil
}

type counter int64

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}

// idle is how long nobody asks an engine for anything before its memory is read. An engine may need some seconds to see that a burst is over.
const idle = 12 * time.Second

// Memory implements Contestant: the PSS of the daemon's descendants and of everything named like a helper, without the containers' own processes.
func (e *Engine) Memory(_ context.Context, n int) (perContainer, engine int64, err error) {
	if e.daemon == nil {
		return 0, 0, ErrSkip
	}
	before, err := e.pss()
	if err != nil {
		return 0, 0, err
	}
	if err := e.many(n, 8); err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, e.removeMany(n)) }()
	time.Sleep(idle)
	after, err := e.pss()
	if err != nil {
		return 0, 0, err
	}
	return (after.helpers - before.helpers) / int64(n), after.engine, nil
}

type usage struct{ engine, helpers int64 }

// pss adds up the engine (daemon, and a containerd below it) and the helpers (monitors, shims) that this engine started.
func (e *Engine) pss() (usage, error) {
	var u usage
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return u, err
	}
	for _, dir := range dirs {
		exe, err := os.Readlink(dir + "/exe")
		if err != nil {
			continue // it ended meanwhile, or is a thread of the kernel
		}
		var part *int64
		switch name := filepath.Base(strings.TrimSuffix(exe, " (deleted)")); {
		case name == "dockerd", name == "containerd", name == "cortend":
			part = &u.engine
		case strings.HasSuffix(name, "corten-monitor"), strings.HasPrefix(name, "containerd-shim"):
			part = &u.helpers
		default:
			continue
		}
		if !e.owns(dir) {
			continue
		}
		if bytes, err := procPSS(dir); err == nil {
			*part += bytes
		}
	}
	return u, nil
}

// owns tells whether a process is the daemon, a child of it, or was given one of its folders.
func (e *Engine) owns(dir string) bool {
	daemon := strconv.Itoa(e.daemon.Process.Pid)
	if filepath.Base(dir) == daemon {
		return true
	}
	if status, err := os.ReadFile(dir + "/status"); err == nil && strings.Contains(string(status), "\nPPid:\t"+daemon+"\n") {
		return true
	}
	cmdline, err := os.ReadFile(dir + "/cmdline")
	return err == nil && e.Dir != "" && strings.Contains(string(cmdline), e.Dir)
}

func procPSS(dir string) (int64, error) {
	raw, err := os.ReadFile(dir + "/smaps_rollup")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(raw)) {
		var kb int64
		if n, _ := fmt.Sscanf(line, "Pss: %d kB", &kb); n == 1 {
			return kb * 1024, nil
		}
	}
	return 0, errors.New("no Pss line")
}
