package step

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/moby/buildkit/solver/pb"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/errs"
)

// defaultPath is what a program gets that has no PATH.
const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// environment is that of the op, of the asker's proxies, and of secrets; the executor adds HOME.
func (o *op) environment(ctx context.Context, env build.Env) ([]string, error) {
	vars := slices.Clone(o.exec.Meta.Env)
	vars = append(vars, proxies(o.exec.Meta.ProxyEnv)...)
	vars = withPath(vars)
	secrets, err := secretEnv(ctx, env, o.exec.Secretenv)
	return append(vars, secrets...), err
}

func withPath(vars []string) []string {
	if slices.ContainsFunc(vars, func(kv string) bool { return strings.HasPrefix(kv, "PATH=") }) {
		return vars
	}
	return append(vars, defaultPath)
}

func proxies(p *pb.ProxyEnv) (vars []string) {
	for _, v := range [...][2]string{
		{"HTTP_PROXY", p.GetHttpProxy()}, {"HTTPS_PROXY", p.GetHttpsProxy()}, {"FTP_PROXY", p.GetFtpProxy()}, {"NO_PROXY", p.GetNoProxy()}, {"ALL_PROXY", p.GetAllProxy()},
	} {
		if v[1] != "" {
			vars = append(vars, v[0]+"="+v[1], strings.ToLower(v[0])+"="+v[1])
		}
	}
	return vars
}

// secretEnv reads the secrets that are variables. One that is optional and not there is an empty variable, as in BuildKit.
func secretEnv(ctx context.Context, env build.Env, asked []*pb.SecretEnv) (vars []string, err error) {
	for _, ask := range asked {
		value, err := secret(ctx, env, ask.ID)
		if err != nil && !(ask.Optional && errors.Is(err, errs.NotFound)) {
			return nil, err
		}
		if strings.ContainsRune(string(value), 0) {
			return nil, errs.New(errs.Invalid, "secret %s: a variable cannot hold a zero byte", ask.ID)
		}
		vars = append(vars, ask.Name+"="+string(value))
	}
	return vars, nil
}

// secret reads one from who asked for the build.
func secret(ctx context.Context, env build.Env, id string) ([]byte, error) {
	session, err := session(ctx, env)
	if err != nil {
		return nil, err
	}
	if session == nil || session.Secrets == nil {
		return nil, errs.New(errs.NotFound, "secret %s: not found", id)
	}
	value, err := session.Secrets.Secret(ctx, id)
	if errors.Is(err, errs.NotFound) {
		return nil, errs.New(errs.NotFound, "secret %s: not found", id)
	}
	if err != nil {
		return nil, fmt.Errorf("secret %s: %w", id, err)
	}
	return value, nil
}

// session is that of who asked; nil where nobody offers anything.
func session(ctx context.Context, env build.Env) (*build.Session, error) {
	if env.Session == nil {
		return nil, nil
	}
	session, err := env.Session(ctx, "")
	if errors.Is(err, errs.NotFound) {
		return nil, nil
	}
	return session, err
}
