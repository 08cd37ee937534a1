package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"corten.dev/corten/internal/errs"
)

// secretSource is where a secret is; it is read only when the engine asks for it.
type secretSource struct{ file, env string }

// planSecrets reads --secret.
func (o *buildFlags) planSecrets(p *buildPlan) error {
	for _, text := range o.secrets {
		id, src, err := parseSecret(text)
		if err != nil {
			return err
		}
		p.secrets[id] = src
	}
	return nil
}

func parseSecret(text string) (id string, src secretSource, err error) {
	m, err := csvMap(text)
	if err != nil {
		return "", src, invalid("ERROR: --secret: %w", err) // the value may name a file, and nothing secret
	}
	kind := m["type"]
	for key, value := range m {
		switch key {
		case "id":
			id = value
		case "source", "src":
			src.file = value
		case "env":
			src.env = value
		case "type":
			if kind != "file" && kind != "env" {
				return "", src, invalid("ERROR: --secret: unsupported secret type %q: use file or env", kind)
			}
		default:
			return "", src, invalid("ERROR: --secret: unexpected key '%s' in '%s'", key, text)
		}
	}
	if id == "" {
		return "", src, invalid("ERROR: --secret: secret missing ID")
	}
	switch {
	case kind == "env" && src.env == "":
		src.env, src.file = src.file, ""
		if src.env == "" {
			src.env = id
		}
	case src.file == "" && src.env == "":
		if _, ok := os.LookupEnv(id); ok && kind == "" {
			src.env = id
		} else {
			src.file = id
		}
	}
	if src.env == "" {
		if st, err := os.Stat(src.file); err != nil {
			return "", src, fmt.Errorf("ERROR: --secret %s: %w", id, err)
		} else if st.IsDir() {
			return "", src, invalid("ERROR: --secret %s: %s is a directory", id, src.file)
		}
		if src.file, err = filepath.Abs(src.file); err != nil {
			return "", src, err
		}
	}
	return id, src, nil
}

// read gives the value.
func (s secretSource) read() ([]byte, error) {
	if s.env == "" {
		return os.ReadFile(s.file)
	}
	value, ok := os.LookupEnv(s.env)
	if !ok {
		return nil, errs.New(errs.NotFound, "the variable %s is not set", s.env)
	}
	return []byte(value), nil
}

// agentSource is an SSH agent: the socket of one that runs, or keys for one of our own, which is started when it is asked for.
type agentSource struct {
	socket string
	keys   []string
}

// planAgents reads --ssh: default, id=socket, id=key,key.
func (p *buildPlan) planAgents(list []string) error {
	for _, text := range list {
		id, paths, ok := strings.Cut(text, "=")
		if id == "" {
			id = "default"
		}
		if !ok || paths == "" {
			socket := os.Getenv("SSH_AUTH_SOCK")
			if socket == "" {
				return invalid("ERROR: --ssh %s: no SSH agent: SSH_AUTH_SOCK is not set; name a key, %s=path", text, id)
			}
			p.agents[id] = agentSource{socket: socket}
			continue
		}
		src, err := agentOf(strings.Split(paths, ","))
		if err != nil {
			return fmt.Errorf("ERROR: --ssh %s: %w", text, err)
		}
		p.agents[id] = src
	}
	return nil
}

func agentOf(paths []string) (agentSource, error) {
	var src agentSource
	for _, path := range paths {
		st, err := os.Stat(path)
		switch {
		case err != nil:
			return src, err
		case st.Mode()&os.ModeSocket != 0 && len(paths) == 1:
			src.socket = path
		case st.Mode().IsRegular():
			src.keys = append(src.keys, path)
		default:
			return src, invalid("%s is neither a key nor the one socket", path)
		}
	}
	return src, nil
}

// startAgent runs an agent for keys, and returns its socket.
func startAgent(ctx context.Context, keys []string) (socket string, stop func(), err error) {
	program, err := exec.LookPath("ssh-agent")
	if err != nil {
		return "", nil, errs.New(errs.Unavailable, "keys of --ssh are held by ssh-agent, which is not installed; name the socket of an agent instead")
	}
	dir, err := os.MkdirTemp("", "corten-ssh-")
	if err != nil {
		return "", nil, err
	}
	socket = filepath.Join(dir, "agent")
	cmd := exec.Command(program, "-D", "-a", socket)
	cmd.Stdout, cmd.Stderr = io.Discard, io.Discard
	if err := cmd.Start(); err != nil {
		return "", nil, errors.Join(err, os.RemoveAll(dir))
	}
	stop = func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		_ = cmd.Wait()
		_ = os.RemoveAll(dir)
	}
	for until := time.Now().Add(5 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		if _, err := os.Stat(socket); err == nil {
			break
		}
		if time.Now().After(until) || ctx.Err() != nil {
			stop()
			return "", nil, errs.New(errs.Unavailable, "ssh-agent did not start")
		}
	}
	add := exec.CommandContext(ctx, "ssh-add", append([]string{"-q", "--"}, keys...)...)
	add.Env = slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "SSH_AUTH_SOCK=") })
	add.Env = append(add.Env, "SSH_AUTH_SOCK="+socket)
	if out, err := add.CombinedOutput(); err != nil {
		stop()
		return "", nil, errs.New(errs.Invalid, "give %s to ssh-agent: %w: %s", strings.Join(keys, ", "), err, strings.TrimSpace(string(out)))
	}
	return socket, stop, nil
}

func dialAgent(ctx context.Context, socket string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "unix", socket)
}
