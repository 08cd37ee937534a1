// Package autostart brings an engine up when a command needs one and nobody runs it.
//
// It owns the choice of the roots (the host's for root, the user's own otherwise), the lock that makes many clients
// start one engine, and the wait until it answers. It promises that the engine outlives the client (a session of its
// own, output to cortend.log in its data root) and that a failed start is told in the engine's own words.
package autostart

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"corten.dev/corten/internal/errs"
)

// Roots are the places of the engine that is to be started.
type Roots struct {
	Data   string
	Exec   string
	Socket string
	Own    bool // the user's own engine: cortend has to be told the places
}

const startLimit = 60 * time.Second

// HostRoots are the places of the host's engine.
func HostRoots(socket string) Roots {
	return Roots{Data: "/var/lib/corten", Exec: filepath.Dir(socket), Socket: socket}
}

// UserRoots are the places of an ordinary user's engine.
func UserRoots(uid int) (Roots, error) {
	data := os.Getenv("XDG_DATA_HOME")
	if data == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return Roots{}, fmt.Errorf("no home for an engine of your own: %w", err)
		}
		data = filepath.Join(home, ".local", "share")
	}
	data = filepath.Join(data, "corten")
	run := os.Getenv("XDG_RUNTIME_DIR")
	if run == "" {
		run = "/run/user/" + strconv.Itoa(uid)
		if _, err := os.Stat(run); err != nil {
			run = filepath.Join(data, "run")
		}
	}
	run = filepath.Join(run, "corten")
	return Roots{Data: data, Exec: run, Socket: filepath.Join(run, "corten.sock"), Own: true}, nil
}

// Args are cortend's arguments for these places.
func (r Roots) Args() []string {
	if !r.Own {
		return nil
	}
	return []string{"--data-root", r.Data, "--exec-root", r.Exec, "-H", "unix://" + r.Socket,
		"--pidfile", filepath.Join(r.Exec, "cortend.pid")}
}

// Start makes sure that an engine listens on r.Socket and returns a connection to it. say tells the user once that an
// engine is being started. Whoever holds the lock starts; all others wait for the lock and find the engine there.
func Start(ctx context.Context, r Roots, say func(string)) (net.Conn, error) {
	if err := os.MkdirAll(r.Exec, 0o711); err != nil {
		return nil, fmt.Errorf("start engine: %w", err)
	}
	if err := os.MkdirAll(r.Data, 0o710); err != nil {
		return nil, fmt.Errorf("start engine: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	unlock, err := lock(ctx, filepath.Join(r.Exec, "start.lock"))
	if err != nil {
		return nil, fmt.Errorf("start engine: %w", err)
	}
	defer unlock()
	if nc, err := dial(r.Socket); err == nil {
		return nc, nil
	}
	program, err := find()
	if err != nil {
		return nil, err
	}
	say("no engine is running, starting " + program)
	logName := filepath.Join(r.Data, "cortend.log")
	exited, err := spawn(program, r.Args(), logName)
	if err != nil {
		return nil, fmt.Errorf("start engine: %w", err)
	}
	return await(ctx, r, exited, logName)
}

func await(ctx context.Context, r Roots, exited <-chan error, logName string) (net.Conn, error) {
	pause := time.Millisecond
	for {
		if nc, err := dial(r.Socket); err == nil {
			return nc, nil
		}
		select {
		case err := <-exited:
			// Another engine may have won the race on its pid file: then it is the one to talk to.
			if nc, derr := dial(r.Socket); derr == nil {
				return nc, nil
			}
			return nil, errs.New(errs.Unavailable, "start engine: cortend ended (%v): %s", err, lastLine(logName))
		case <-ctx.Done():
			return nil, errs.New(errs.Unavailable, "start engine: no answer on %s after %s; see %s", r.Socket, startLimit, logName)
		case <-time.After(pause):
		}
		pause = min(pause*2, 20*time.Millisecond)
	}
}

func dial(socket string) (net.Conn, error) { return net.Dial("unix", socket) }

// find looks for cortend beside our own program, then in PATH.
func find() (string, error) {
	if self, err := os.Executable(); err == nil {
		if real, err := filepath.EvalSymlinks(self); err == nil {
			self = real
		}
		beside := filepath.Join(filepath.Dir(self), "cortend")
		if st, err := os.Stat(beside); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return beside, nil
		}
	}
	p, err := lookPath("cortend")
	if err != nil {
		return "", errs.New(errs.NotFound, "no engine is running, and cortend is neither beside corten nor in PATH; install it or name an engine with --host")
	}
	return p, nil
}

// lookPath takes absolute places only: a program in the current folder is never started as root.
func lookPath(name string) (string, error) {
	for _, dir := range filepath.SplitList(os.Getenv("PATH")) {
		if !filepath.IsAbs(dir) {
			continue
		}
		p := filepath.Join(dir, name)
		if st, err := os.Stat(p); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return p, nil
		}
	}
	return "", errors.New("not found")
}

// lastLine is the end of the engine's log, which may be large by now.
func lastLine(name string) string {
	const enough = 64 << 10
	f, err := os.Open(name)
	if err != nil {
		return "no log: " + err.Error()
	}
	defer f.Close()
	if st, err := f.Stat(); err == nil && st.Size() > enough {
		_, _ = f.Seek(-enough, io.SeekEnd) // else the beginning is read
	}
	data, err := io.ReadAll(io.LimitReader(f, enough))
	if err != nil {
		return "no log: " + err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	if last := strings.TrimSpace(lines[len(lines)-1]); last != "" {
		return cause(last)
	}
	return "see " + name
}

// cause is the error that a line of the engine's log tells of, or the line.
func cause(line string) string {
	_, rest, ok := strings.Cut(line, " err=")
	if !ok {
		return line
	}
	quoted, err := strconv.QuotedPrefix(rest)
	if err != nil {
		return line
	}
	text, err := strconv.Unquote(quoted)
	if err != nil {
		return line
	}
	return text
}
