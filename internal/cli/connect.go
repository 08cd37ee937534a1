package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"syscall"
	"time"

	"corten.dev/corten/internal/cli/autostart"
	"corten.dev/corten/internal/cli/credentials"
	"corten.dev/corten/internal/cli/endpoint"
	"corten.dev/corten/internal/cli/engineapi"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/version"
)

// config reads docker's config file, once. One that cannot be read is told, and the verb goes on without it, as docker's do.
func (a *app) config() *endpoint.Config {
	if a.cfg != nil {
		return a.cfg
	}
	cfg, err := endpoint.LoadConfig(a.global.configDir)
	if err != nil {
		fmt.Fprintf(a.Err, "WARNING: %v\n", err)
		a.blind = true
	}
	a.cfg = cfg
	return cfg
}

// logins is what is known about registries: nothing when the file cannot be read, which is told once.
func (a *app) logins() *credentials.File {
	cfg := a.config()
	if a.blind {
		return &credentials.File{}
	}
	file, err := credentials.Open(cfg.Dir)
	if err != nil {
		fmt.Fprintf(a.Err, "WARNING: %v; going on without a login\n", err)
		a.blind, file = true, &credentials.File{}
	}
	return file
}

// engine gives the API client. Nothing is dialled yet.
func (a *app) engine() (*engineapi.Client, error) {
	if a.api != nil {
		return a.api, nil
	}
	cfg := a.config()
	ep, err := endpoint.Resolve(a.global.Flags, cfg)
	if err != nil {
		return nil, err
	}
	a.ep = ep
	a.api = engineapi.New(engineapi.Config{
		Dial: a.dial, Authority: a.ep.Authority(), BasePath: a.ep.BasePath(),
		Version: os.Getenv("DOCKER_API_VERSION"), Header: cfg.HTTPHeaders,
		UserAgent: "Corten-Client/" + version.Version,
	})
	return a.api, nil
}

// dial connects, and starts an engine when nobody named one and none is there.
func (a *app) dial(ctx context.Context) (net.Conn, error) {
	began := time.Now()
	nc, err := a.connect(ctx)
	a.debugf("connect %s: %v (%s)", a.ep.Host, errText(err), time.Since(began).Round(time.Microsecond))
	return nc, err
}

func errText(err error) string {
	if err == nil {
		return "ok"
	}
	return err.Error()
}

func (a *app) connect(ctx context.Context) (net.Conn, error) {
	nc, err := a.ep.Dial(ctx)
	if err == nil {
		return nc, nil
	}
	if !a.ep.Default || !autostart.Supported {
		return nil, a.unreachable(err)
	}
	uid := os.Getuid()
	roots := autostart.HostRoots(endpoint.DefaultSocket)
	if uid != 0 {
		// An ordinary user gets an engine of their own, unless the host's answered above.
		if roots, err = autostart.UserRoots(uid); err != nil {
			return nil, err
		}
		a.ep.Host = "unix://" + roots.Socket
		if nc, err = a.ep.Dial(ctx); err == nil {
			return nc, nil
		}
	}
	if !absent(err) || a.passive {
		return nil, a.unreachable(err)
	}
	return autostart.Start(ctx, roots, func(s string) { fmt.Fprintln(a.Err, "corten: "+s) })
}

// absent tells whether nobody listens, as against an engine that does not let us in.
func absent(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED)
}

// reachError is a connection that could not be made.
type reachError struct {
	host string
	err  error
}

func (e *reachError) Error() string {
	if errors.Is(e.err, fs.ErrPermission) {
		return fmt.Sprintf("permission denied while trying to connect to the Corten engine at %s: %v", e.host, e.err)
	}
	if absent(e.err) {
		return fmt.Sprintf("Cannot connect to the Corten engine at %s. Is cortend running?", e.host)
	}
	return fmt.Sprintf("Cannot connect to the Corten engine at %s: %v", e.host, e.err)
}

func (e *reachError) Unwrap() error { return e.err }

func (a *app) unreachable(err error) error {
	return &reachError{host: a.ep.Host, err: err}
}

// explain leaves out what was being requested when the engine could not be reached: the host says it all. An engine that went away in the middle is no matter of bytes either.
func (a *app) explain(err error) error {
	var reach *reachError
	var ssh *endpoint.SSHError
	var gone *engineapi.GoneError
	switch {
	case errors.As(err, &reach):
		return reach
	case errors.As(err, &ssh) && !ssh.Met:
		return &reachError{host: ssh.Host, err: errors.New(ssh.Said)}
	case errors.As(err, &gone):
		host, what := gone.Engine, gone.Request
		if host == "" {
			host = a.ep.Host // it may have become the user's own
		}
		if ssh != nil {
			what += ": " + ssh.Said
		}
		return errs.New(errs.Unavailable, "The Corten engine at %s went away before it had answered in full (%s). Its log says why; run the command again when it is back.", host, what)
	}
	return err
}

func (a *app) debugf(format string, args ...any) {
	if a.global.debug {
		fmt.Fprintf(a.Err, "DEBUG: "+format+"\n", args...)
	}
}

// query builds URL values from pairs; empty values are left out.
func query(pairs ...string) url.Values {
	q := url.Values{}
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			q.Set(pairs[i], pairs[i+1])
		}
	}
	return q
}

// into puts the filters into a query.
func (f filters) into(q url.Values) url.Values {
	if len(f) > 0 {
		data, err := json.Marshal(f)
		if err == nil { // a map of maps of bool always marshals
			q.Set("filters", string(data))
		}
	}
	return q
}

func esc(name string) string { return url.PathEscape(name) }

func flag1(on bool) string {
	if on {
		return "1"
	}
	return ""
}

// each runs do for every name, goes on after errors, prints them, and ends with code 1 if there was one.
func (a *app) each(names []string, do func(string) error) error {
	var failed bool
	for _, name := range names {
		if err := a.explain(do(name)); err != nil {
			failed = true
			fmt.Fprintln(a.Err, err)
			if errors.As(err, new(*reachError)) {
				break
			}
		}
	}
	if failed {
		return &exitError{code: 1}
	}
	return nil
}
