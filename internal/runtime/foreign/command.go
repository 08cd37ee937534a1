package foreign

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"corten.dev/corten/internal/errs"
)

// line is a whole command line: what the runtime is called with, then the verb.
func (ctr *Container) line(log string, verb ...string) (path string, args []string, err error) {
	cmd := ctr.rec.Command
	if path, err = exec.LookPath(cmd.Path); err != nil {
		return "", nil, fmt.Errorf("runtime %s: %w", cmd.Name, err)
	}
	if path, err = filepath.Abs(path); err != nil {
		return "", nil, err
	}
	args = append([]string{path}, cmd.Args...)
	args = append(args, "--root", filepath.Join(ctr.dir, "state"))
	if log != "" {
		args = append(args, "--log", log, "--log-format", "json")
	}
	if ctr.rec.Systemd {
		args = append(args, "--systemd-cgroup")
	}
	return path, append(args, verb...), nil
}

// environment is what the commands get: none of the engine's settings, which would reach hooks and the container's first process.
func environment() []string {
	path := os.Getenv("PATH")
	if path == "" {
		path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	}
	return []string{"PATH=" + path}
}

// call runs one of the runtime's verbs that answers and ends.
func (ctr *Container) call(ctx context.Context, stdin []byte, verb ...string) ([]byte, error) {
	log, err := os.CreateTemp(ctr.dir, "log-")
	if errors.Is(err, os.ErrNotExist) {
		return nil, errs.New(errs.NotFound, "container %s does not exist", ctr.rec.ID)
	}
	if err != nil {
		return nil, err
	}
	defer os.Remove(log.Name()) //nolint:errcheck // goes with the folder
	defer log.Close()           //nolint:errcheck // was only read
	path, args, err := ctr.line(log.Name(), verb...)
	if err != nil {
		return nil, err
	}
	var out, said bytes.Buffer
	cmd := exec.CommandContext(ctx, path)
	cmd.Args, cmd.Env, cmd.Dir = args, environment(), "/"
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &out, &said
	if err := cmd.Run(); err != nil {
		return nil, ctr.complaint(log.Name(), said.String(), err)
	}
	return out.Bytes(), nil
}

// What runtimes put before the reason, and the engine says itself.
var prefixes = []string{"runc create failed: ", "runc run failed: ", "exec failed: ", "unable to start container process: ", "error during container init: ", "container_linux.go:", "error executing hook: "}

// complaint is why a command failed, in its own words: the last error of its log, else the last line that it said.
func (ctr *Container) complaint(log, said string, cause error) error {
	text := lastError(log)
	if text == "" {
		lines := strings.Split(strings.TrimSpace(said), "\n")
		text = strings.TrimSpace(lines[len(lines)-1])
	}
	if text == "" {
		return fmt.Errorf("runtime %s: %w", ctr.rec.Command.Name, cause)
	}
	for _, p := range prefixes {
		text = strings.TrimPrefix(text, p)
	}
	kind := kindOf(strings.ToLower(text))
	if kind == errs.NoCommand && !strings.Contains(text, noCommand) {
		text = noCommand + ": " + text
	}
	return errs.As(kind, errors.New(text))
}

// noCommand are the words by which docker's client knows that a command is not there, whatever the runtime calls it.
const noCommand = "executable file not found"

// kindOf tells the reasons apart that callers ask for; nil is none of them.
func kindOf(text string) error {
	has := func(all ...string) bool {
		for _, part := range all {
			if !strings.Contains(text, part) {
				return false
			}
		}
		return true
	}
	switch {
	case has("executable file", "not found"), has("exec", "no such file or directory"):
		return errs.NoCommand
	case has("exec", "permission denied"), has("exec", "is a directory"), has("exec format error"):
		return errs.NotExecutable
	case has("container", "does not exist"), has("not running"), has("process already finished"), has("no such process"), has("container", "is stopped"):
		return errs.NotFound
	}
	return errUnnamed
}

// errUnnamed is the kind of what has none.
var errUnnamed = errors.New("runtime error")

// lastError reads a log in JSON, one object a line, as all these runtimes write it.
func lastError(path string) string {
	body, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	text := ""
	for line := range bytes.Lines(body) {
		var entry struct{ Level, Msg string }
		if json.Unmarshal(line, &entry) == nil && entry.Level == "error" && entry.Msg != "" {
			text = entry.Msg
		}
	}
	return strings.TrimSpace(text)
}

// gone takes away that what was to be ended has ended already.
func gone(err error) error {
	if errors.Is(err, errs.NotFound) {
		return nil
	}
	return err
}
