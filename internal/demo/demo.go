// Package demo is the main job of Corten end to end, on a fresh machine with nothing but a kernel: what `make demo` shows.
//
// It owns one private engine with temporary roots, a bridge and a packet table of its own. It promises to leave nothing behind, and fails when anything was.
package demo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Demo runs the steps with the binaries of one folder.
type Demo struct {
	Bin string // folder of corten and cortend
	Out io.Writer
	// EngineFlags are given to the engine as well, e.g. for the systemd cgroup driver.
	EngineFlags []string

	dir      string
	engine   *exec.Cmd
	greeting string // shown once in full
}

const (
	bridge = "ctndemo0"
	table  = "corten-demo"
	subnet = "10.213.9.1/24"
)

// Run does all of it.
func (d *Demo) Run(ctx context.Context) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("the demo makes namespaces and a bridge: run it as root")
	}
	if d.dir, err = os.MkdirTemp("", "corten-demo"); err != nil {
		return err
	}
	before := mounts()
	defer func() {
		if err != nil {
			d.tellLog()
		}
		err = errors.Join(err, d.stop(), os.RemoveAll(d.dir))
		if err == nil {
			err = leftovers(before)
		}
	}()
	if err := d.start(ctx); err != nil {
		return err
	}
	for _, step := range []func(context.Context) error{d.build, d.hello, d.serve, d.look, d.volume, d.ship, d.finish} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (d *Demo) socket() string { return "unix://" + filepath.Join(d.dir, "exec", "corten.sock") }

func (d *Demo) start(ctx context.Context) error {
	d.say("Starting a private engine")
	log, err := os.Create(filepath.Join(d.dir, "cortend.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	config := filepath.Join(d.dir, "daemon.json")
	if err := os.WriteFile(config, []byte("{}"), 0o644); err != nil {
		return err
	}
	args := append([]string{"-H", d.socket(), "--data-root", filepath.Join(d.dir, "data"), "--exec-root", filepath.Join(d.dir, "exec"),
		"--bridge", bridge, "--bip", subnet, "--nft-table", table, "--config-file", config}, d.EngineFlags...)
	d.engine = exec.Command(filepath.Join(d.Bin, "cortend"), args...)
	d.engine.Stdout, d.engine.Stderr = log, log
	start := time.Now()
	if err := d.engine.Start(); err != nil {
		return err
	}
	for {
		if _, err := d.corten(ctx, "version"); err == nil {
			break
		}
		if time.Since(start) > patience {
			return fmt.Errorf("the engine did not answer within %s", patience)
		}
		time.Sleep(20 * time.Millisecond) // each try is a process, which an emulated machine feels
	}
	d.took("the engine answered", start)
	return nil
}

func (d *Demo) hello(ctx context.Context) error {
	for range 3 {
		start := time.Now()
		out, err := d.corten(ctx, "run", "--rm", "corten/hello")
		if err != nil {
			return err
		}
		if start := time.Since(start); !strings.Contains(out, "Corten") {
			return fmt.Errorf("corten/hello did not greet after %s: %q", start, out)
		}
		d.took("corten run --rm corten/hello", start)
	}
	return d.show(ctx, "run", "--rm", "corten/hello")
}

func (d *Demo) serve(ctx context.Context) error {
	start := time.Now()
	if err := d.show(ctx, "run", "-d", "--name", "web", "-p", "8080", "corten/hello", "serve"); err != nil {
		return err
	}
	d.took("corten run -d", start)
	out, err := d.corten(ctx, "port", "web", "8080/tcp")
	if err != nil {
		return err
	}
	address, _, _ := strings.Cut(out, "\n")
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return err
	}
	start = time.Now()
	body, err := fetch(ctx, "http://127.0.0.1:"+port+"/")
	if err != nil {
		return err
	}
	d.took(fmt.Sprintf("fetched %d bytes from the published port %s", len(body), port), start)
	fmt.Fprintf(d.Out, "    %s\n", firstLine(body))
	return nil
}

// patience is how long the demo waits for what must come: it is shown on emulated machines, too, fifty times slower than others.
const patience = 3 * time.Minute

// fetch gets a page as soon as its server answers: the program has to open its socket first.
func fetch(ctx context.Context, url string) (string, error) {
	var last error
	for start := time.Now(); time.Since(start) < patience; {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return "", err
		}
		resp, err := http.DefaultClient.Do(req)
		if err == nil {
			body, err := io.ReadAll(resp.Body)
			return string(body), errors.Join(err, resp.Body.Close())
		}
		last = err
		time.Sleep(10 * time.Millisecond)
	}
	return "", last
}

func (d *Demo) look(ctx context.Context) error {
	for _, args := range [][]string{{"ps"}, {"logs", "web"}, {"stats", "--no-stream", "web"}, {"exec", "web", "/corten-hello"}, {"images"}} {
		if err := d.show(ctx, args...); err != nil {
			return err
		}
	}
	return nil
}

func (d *Demo) volume(ctx context.Context) error {
	for _, args := range [][]string{{"volume", "create", "data"}, {"run", "--rm", "-v", "data:/data", "corten/hello"}, {"volume", "rm", "data"}} {
		if err := d.show(ctx, args...); err != nil {
			return err
		}
	}
	return nil
}

func (d *Demo) finish(ctx context.Context) error {
	for _, args := range [][]string{{"stop", "web"}, {"rm", "web"}, {"ps", "-a"}} {
		if err := d.show(ctx, args...); err != nil {
			return err
		}
	}
	return nil
}

// corten runs the client and returns what it printed.
func (d *Demo) corten(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(d.Bin, "corten"), append([]string{"-H", d.socket()}, args...)...)
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("corten %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return out.String(), nil
}

func (d *Demo) show(ctx context.Context, args ...string) error {
	fmt.Fprintf(d.Out, "$ corten %s\n", strings.Join(args, " "))
	out, err := d.corten(ctx, args...)
	if out != "" && out == d.greeting {
		out = firstLine(out) + " (and so on)\n"
	} else if strings.Contains(out, "Hello from Corten") {
		d.greeting = out
	}
	for line := range strings.Lines(out) {
		fmt.Fprintf(d.Out, "    %s", line)
	}
	return err
}

func (d *Demo) say(s string) { fmt.Fprintf(d.Out, "%s\n", s) }

func (d *Demo) took(what string, start time.Time) {
	fmt.Fprintf(d.Out, "  %-50s %6.1f ms\n", what, float64(time.Since(start))/1e6)
}

func (d *Demo) tellLog() {
	raw, err := os.ReadFile(filepath.Join(d.dir, "cortend.log"))
	if err == nil && len(raw) > 0 {
		fmt.Fprintf(d.Out, "The engine's log:\n%s\n", raw)
	}
}

func (d *Demo) stop() error {
	if d.engine == nil || d.engine.Process == nil {
		return nil
	}
	if err := d.engine.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- d.engine.Wait() }()
	select {
	case err := <-ended:
		return err
	case <-time.After(patience):
		return errors.Join(fmt.Errorf("the engine did not end within %s", patience), d.engine.Process.Kill(), <-ended)
	}
}

func firstLine(s string) string {
	s, _, _ = strings.Cut(strings.TrimSpace(s), "\n")
	return s
}

func mounts() int {
	raw, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return 0
	}
	return bytes.Count(raw, []byte("\n"))
}

// leftovers looks for what must be gone. Taking down happens in the background of the kernel too, so it is given a moment.
func leftovers(mountsBefore int) error {
	var found []string
	for start := time.Now(); time.Since(start) < patience; {
		found = nil
		if n := mounts(); n != mountsBefore {
			found = append(found, fmt.Sprintf("%d mounts instead of %d", n, mountsBefore))
		}
		if _, err := net.InterfaceByName(bridge); err == nil {
			found = append(found, "bridge "+bridge)
		}
		if len(found) == 0 {
			return nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	return fmt.Errorf("left behind: %s", strings.Join(found, ", "))
}
