package cli

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"corten.dev/corten/internal/cli/copied"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/reference"
)

// planContext says where the files come from:
//
//	PATH           a directory, handed over or mirrored      context "context", and "dockerfile" for the folder of the Dockerfile
//	-              an archive (unpacked to a folder of ours), or a Dockerfile without files
//	https, git     an address that the engine fetches
func (o *buildFlags) planContext(a *app, p *buildPlan, from string) error {
	at := p.req.Attrs
	if len(o.hosts) > 0 {
		hosts, err := planHosts(o.hosts, a.hostGateway)
		if err != nil {
			return err
		}
		at["add-hosts"] = hosts
	}
	dockerDir, dockerName := "", ""
	file, text := o.file, a.In
	var fromStdin io.Reader // or from an address: the text of the Dockerfile
	if isHTTP(o.file) {
		var err error
		if text, err = a.remoteDockerfile(o.file); err != nil {
			return err
		}
		file = "-"
	}
	switch {
	case from == "-" && o.file == "-":
		return invalid("ERROR: invalid argument: can't use stdin for both build context and dockerfile")
	case from == "-":
		in, err := o.stdinContext(a, p)
		if err != nil {
			return err
		}
		if fromStdin = in; file == "-" {
			fromStdin = text
		}
	case isRemoteContext(from):
		at["context"] = from
		if file == "-" {
			fromStdin = text
		} else if filepath.IsAbs(file) {
			dockerDir, dockerName = filepath.Split(file)
			at["dockerfilekey"] = "dockerfile"
		} else {
			dockerName = file
		}
	default:
		if st, err := os.Stat(from); err != nil || !st.IsDir() {
			return &exitError{code: 1, text: fmt.Sprintf("ERROR: unable to prepare context: path %q not found", from)}
		}
		p.dirs["context"] = from
		switch file {
		case "-":
			fromStdin = text
		case "":
			dockerDir = from
		default:
			dockerDir, dockerName = filepath.Split(file)
			if dockerDir == "" {
				dockerDir = "."
			}
		}
	}
	if from == "-" && fromStdin == nil {
		dockerDir, dockerName = p.dirs["context"], file
	}
	if fromStdin != nil {
		dir, err := p.stdinDockerfile(fromStdin)
		if err != nil {
			return err
		}
		dockerDir, dockerName = dir, "Dockerfile"
		at["dockerfilekey"] = "dockerfile"
	}
	if err := p.dockerfile(dockerDir, dockerName, o.file != "" && from != "-"); err != nil {
		return err
	}
	return o.namedContexts(p)
}

// dockerfile says where the Dockerfile is: in a folder here, or, without one, in the context. One that must be there, and is not, is refused.
func (p *buildPlan) dockerfile(dir, name string, must bool) error {
	if name == "" {
		name = "Dockerfile"
	}
	if dir != "" {
		p.dirs["dockerfile"] = dir
		name = existingName(dir, name)
		if _, err := os.Stat(filepath.Join(dir, name)); errors.Is(err, os.ErrNotExist) && must {
			return &exitError{code: 1, text: fmt.Sprintf("ERROR: failed to build: failed to solve: failed to read dockerfile: open %s: no such file or directory", name)}
		}
	}
	p.req.Attrs["filename"] = name
	return nil
}

// remoteDockerfile has the engine fetch a Dockerfile.
func (a *app) remoteDockerfile(address string) (io.Reader, error) {
	files, err := a.fetch(context.Background(), address, nil)
	if err == nil && len(files) == 0 {
		err = errs.New(errs.NotFound, "nothing is at %s", address)
	}
	if err != nil {
		return nil, fmt.Errorf("ERROR: fetch the Dockerfile: %w", err)
	}
	return bytes.NewReader(files[0].Data), nil
}

// existingName takes a file "dockerfile" for "Dockerfile" when only that is there.
func existingName(dir, name string) string {
	if filepath.Base(name) != "Dockerfile" {
		return name
	}
	if _, err := os.Lstat(filepath.Join(dir, name)); !errors.Is(err, os.ErrNotExist) {
		return name
	}
	lower := filepath.Join(filepath.Dir(name), "dockerfile")
	if _, err := os.Lstat(filepath.Join(dir, lower)); err == nil {
		return lower
	}
	return name
}

// stdinContext reads what - stands for: an archive becomes a folder; else the reader is the Dockerfile.
func (o *buildFlags) stdinContext(a *app, p *buildPlan) (dockerfile io.Reader, err error) {
	in := bufio.NewReaderSize(a.In, 64<<10)
	head, err := in.Peek(1024)
	if err != nil && err != io.EOF {
		return nil, fmt.Errorf("ERROR: read the context from stdin: %w", err)
	}
	dir, err := p.tempDir("corten-context-")
	if err != nil {
		return nil, err
	}
	p.dirs["context"] = dir
	if !copied.IsArchive(head) {
		if o.file != "" {
			return nil, invalid("ERROR: ambiguous Dockerfile source: both stdin and flag correspond to Dockerfiles")
		}
		return in, nil
	}
	tar, err := copied.Decompress(in, head)
	if err != nil {
		return nil, err
	}
	if err := copied.UnpackContext(dir, tar); err != nil {
		_ = tar.Close() // the error says more
		return nil, fmt.Errorf("ERROR: unpack the context from stdin: %w", err)
	}
	if err := tar.Close(); err != nil {
		return nil, fmt.Errorf("ERROR: unpack the context from stdin: %w", err)
	}
	return nil, nil
}

// maxDockerfile bounds a Dockerfile on standard input.
const maxDockerfile = 16 << 20

func (p *buildPlan) stdinDockerfile(in io.Reader) (dir string, err error) {
	if dir, err = p.tempDir("corten-dockerfile-"); err != nil {
		return "", err
	}
	text, err := io.ReadAll(io.LimitReader(in, maxDockerfile+1))
	switch {
	case err != nil:
		return "", fmt.Errorf("ERROR: read the Dockerfile from stdin: %w", err)
	case len(text) > maxDockerfile:
		return "", invalid("ERROR: the Dockerfile from stdin is larger than %d bytes", maxDockerfile)
	}
	return dir, os.WriteFile(filepath.Join(dir, "Dockerfile"), text, 0o600)
}

func (p *buildPlan) tempDir(pattern string) (string, error) {
	dir, err := os.MkdirTemp("", pattern)
	if err == nil {
		p.temps = append(p.temps, dir)
	}
	return dir, err
}

// namedContexts reads --build-context.
func (o *buildFlags) namedContexts(p *buildPlan) error {
	for _, text := range o.contexts {
		name, value, ok := strings.Cut(text, "=")
		if !ok || name == "" || value == "" {
			return invalid("ERROR: invalid context value: %s, expected key=value", text)
		}
		name, err := contextName(name)
		if err != nil {
			return invalid("ERROR: invalid context name %s: %w", name, err)
		}
		if err := p.namedContext(name, value); err != nil {
			return err
		}
	}
	return nil
}

// contextName is the name that the frontend looks a context up by: it may stand for an image, in any of the ways to write that, for one platform ("name::platform") or all.
func contextName(name string) (string, error) {
	name, platform, only := strings.Cut(name, "::")
	ref, err := reference.Parse(name)
	if err != nil {
		return name, err
	}
	name = strings.TrimSuffix(ref.Familiar(), ":"+reference.DefaultTag)
	if only {
		name += "::" + platform
	}
	return name, nil
}

func (p *buildPlan) namedContext(name, value string) error {
	at := p.req.Attrs
	at["frontend.caps"] = joinCaps(at["frontend.caps"], "moby.buildkit.frontend.contexts+forward")
	key := "context:" + name
	switch {
	case isRemoteContext(value), strings.HasPrefix(value, "docker-image://"):
		at[key] = value
		return nil
	case strings.HasPrefix(value, "oci-layout://"):
		return p.layoutContext(key, name, strings.TrimPrefix(value, "oci-layout://"))
	}
	if st, err := os.Stat(value); err != nil {
		return &exitError{code: 1, text: fmt.Sprintf("ERROR: failed to get build context %s: %v", name, err)}
	} else if !st.IsDir() {
		return &exitError{code: 1, text: fmt.Sprintf("ERROR: failed to get build context %s: %s is not a directory", name, value)}
	}
	local := name
	if local == "context" || local == "dockerfile" {
		local = "_" + local
	}
	p.dirs[local] = value
	at[key] = "local:" + local
	return nil
}

func joinCaps(have, more string) string {
	if have == "" || have == more {
		return more
	}
	return have + "," + more
}

// isRemoteContext tells addresses that the engine fetches from folders.
func isRemoteContext(s string) bool {
	if isHTTP(s) {
		return true
	}
	for _, prefix := range []string{"git://", "ssh://", "git@", "github.com/"} {
		if strings.HasPrefix(s, prefix) {
			return true
		}
	}
	// user@host:path, as scp writes it
	user, rest, ok := strings.Cut(s, "@")
	host, path, ok2 := strings.Cut(rest, ":")
	return ok && ok2 && user != "" && host != "" && path != "" && !strings.ContainsAny(user+host, "/\\ ")
}

func isHTTP(s string) bool {
	return strings.HasPrefix(s, "http://") || strings.HasPrefix(s, "https://")
}
