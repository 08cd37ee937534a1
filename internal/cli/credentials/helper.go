package credentials

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"strings"

	"corten.dev/corten/internal/errs"
)

// program is a credential helper, docker-credential-<name>:
//
//	get    server on stdin        {"ServerURL","Username","Secret"} on stdout
//	store  the same JSON on stdin
//	erase  server on stdin
//
// The user name "<token>" tells that the secret is an identity token. Errors are text on stdout.
type program string

const (
	tokenUser = "<token>"
	maxAnswer = 1 << 20
)

type secret struct {
	ServerURL string
	Username  string
	Secret    string
}

func (p program) get(ctx context.Context, server string) (Auth, error) {
	out, err := p.run(ctx, "get", server)
	if err != nil {
		if strings.Contains(err.Error(), "credentials not found") {
			return Auth{}, nil
		}
		return Auth{}, err
	}
	var s secret
	if json.Unmarshal(out, &s) != nil { // what it says may be a secret
		return Auth{}, errs.New(errs.Invalid, "credential helper %s: its answer for %s is not what it should be", p.name(), server)
	}
	if s.Username == tokenUser {
		return Auth{IdentityToken: s.Secret}, nil
	}
	return Auth{Username: s.Username, Password: s.Secret}, nil
}

func (p program) store(ctx context.Context, server string, auth Auth) error {
	s := secret{ServerURL: server, Username: auth.Username, Secret: auth.Password}
	if auth.IdentityToken != "" {
		s.Username, s.Secret = tokenUser, auth.IdentityToken
	}
	data, err := json.Marshal(s)
	if err != nil {
		return err
	}
	_, err = p.run(ctx, "store", string(data))
	return err
}

func (p program) erase(ctx context.Context, server string) error {
	_, err := p.run(ctx, "erase", server)
	if err != nil && strings.Contains(err.Error(), "credentials not found") {
		return nil
	}
	return err
}

func (p program) name() string { return "docker-credential-" + string(p) }

// run asks the helper. Its error text is what it printed; that of store is not shown, because it got a secret to repeat.
func (p program) run(ctx context.Context, verb, in string) ([]byte, error) {
	if strings.ContainsAny(string(p), `/\`) {
		return nil, errs.New(errs.Invalid, "credential helper %q: its name cannot be a path", string(p))
	}
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, p.name(), verb)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(in), &limited{left: maxAnswer, Buffer: &out}, os.Stderr
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return out.Bytes(), nil
	case errors.Is(err, exec.ErrNotFound):
		return nil, errs.New(errs.NotFound, "credential helper %s: not found in PATH: install it, or take it out of config.json", p.name())
	case errors.As(err, &exit) && verb != "store":
		if text := strings.Join(strings.Fields(out.String()), " "); text != "" {
			return nil, errs.New(errs.Unavailable, "credential helper %s: %s", p.name(), text)
		}
	}
	return nil, errs.New(errs.Unavailable, "credential helper %s: %s: %w", p.name(), verb, err)
}

// limited takes so much and no more.
type limited struct {
	*bytes.Buffer
	left int
}

func (l *limited) Write(p []byte) (int, error) {
	if len(p) > l.left {
		return 0, errors.New("the answer is too long")
	}
	l.left -= len(p)
	return l.Buffer.Write(p)
}
