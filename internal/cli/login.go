package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/moby/moby/api/types/registry"
	"github.com/spf13/pflag"

	"corten.dev/corten/internal/cli/credentials"
	"corten.dev/corten/internal/cli/term"
	"corten.dev/corten/internal/errs"
)

type loginOptions struct {
	user, password string
	stdin          bool
}

func newLogin() *verb {
	var o loginOptions
	return &verb{
		use: "[OPTIONS] [SERVER]", max: 1, short: "Log in to a registry",
		long: "Checks a user name and a password (or token) with a registry and keeps them: in the credential helper that docker's\n" +
			"config.json names, else in that file. Without a server it is the engine's default registry: Docker Hub, unless its settings name another.",
		example: "corten login -u me registry.example.org:5000\nsecret-tool lookup registry x | corten login -u me --password-stdin registry.example.org:5000",
		flags: func(f *pflag.FlagSet) {
			f.StringVarP(&o.user, "username", "u", "", "user name")
			f.StringVarP(&o.password, "password", "p", "", "password or token; others can see it in the list of processes")
			f.BoolVar(&o.stdin, "password-stdin", false, "read the password or token from STDIN")
		},
		run: func(ctx context.Context, a *app, args []string) error {
			if len(args) == 1 {
				return o.run(ctx, a, credentials.Server(args[0]))
			}
			server, err := a.defaultServer(ctx)
			if err != nil {
				return err
			}
			return o.run(ctx, a, server)
		},
	}
}

// settle checks the flags and reads the password that comes by a pipe.
func (o *loginOptions) settle(a *app) error {
	switch {
	case o.password != "" && o.stdin:
		return &exitError{code: 1, text: "conflicting options: cannot specify both --password and --password-stdin"}
	case o.stdin && o.user == "":
		return &exitError{code: 1, text: "the --password-stdin option requires --username to be set"}
	case o.password != "":
		fmt.Fprintln(a.Err, "WARNING! Using --password via the CLI is insecure. Use --password-stdin.")
	case o.stdin:
		data, err := io.ReadAll(a.In)
		if err != nil {
			return fmt.Errorf("read the password: %w", err)
		}
		o.password = strings.TrimSuffix(strings.TrimSuffix(string(data), "\n"), "\r")
		if o.password == "" {
			return &exitError{code: 1, text: "the password on STDIN is empty"}
		}
	}
	return nil
}

func (o *loginOptions) run(ctx context.Context, a *app, server string) error {
	if err := o.settle(a); err != nil {
		return err
	}
	cfg := a.config()
	if cfg.Dir == "" {
		return &exitError{code: 1, text: "there is no home folder to keep credentials in: name one with --config"}
	}
	file, err := credentials.Open(cfg.Dir)
	if err != nil {
		return err
	}
	if o.user == "" && o.password == "" {
		known, err := file.Get(ctx, server)
		if err != nil {
			return err
		}
		if !known.Empty() {
			done, err := o.again(ctx, a, file, server, known)
			if done || err != nil {
				return err
			}
		}
	}
	if err := o.ask(a, server); err != nil {
		return err
	}
	return a.login(ctx, file, server, credentials.Auth{Username: o.user, Password: o.password, ServerAddress: server})
}

// again tries what is known already; the registry may not take it any more.
func (o *loginOptions) again(ctx context.Context, a *app, file *credentials.File, server string, known credentials.Auth) (done bool, err error) {
	who := ""
	if known.Username != "" {
		who = " [Username: " + known.Username + "]"
	}
	fmt.Fprintf(a.Err, "Authenticating with existing credentials...%s\n\n Info -> To login with a different account, run 'corten logout' followed by 'corten login'\n\n\n", who)
	err = a.login(ctx, file, server, known)
	if err == nil {
		return true, nil
	}
	if !errors.Is(err, errs.Unauthorized) {
		return true, err
	}
	fmt.Fprintln(a.Err, "Stored credentials invalid or expired")
	return false, nil
}

// ask asks on the terminal for what the flags did not say.
func (o *loginOptions) ask(a *app, server string) error {
	if o.user != "" && o.password != "" {
		return nil
	}
	fd, ok := a.stdinFd()
	if !ok {
		return &exitError{code: 1, text: "Error: Cannot perform an interactive login from a non TTY device"}
	}
	in := bufio.NewReader(a.In)
	if o.user == "" {
		if server == credentials.DefaultServer {
			fmt.Fprintln(a.Out, "Log in with your Docker ID or email address, and your password or a Personal Access Token.")
		}
		fmt.Fprint(a.Out, "Username: ")
		user, err := readLine(in, nil)
		if err != nil {
			return err
		}
		if o.user = user; o.user == "" {
			return &exitError{code: 1, text: "Error: Non-null Username Required"}
		}
	}
	if o.password == "" {
		fmt.Fprint(a.Out, "Password: ")
		state, err := term.NoEcho(fd)
		if err != nil {
			return err
		}
		o.password, err = readLine(in, state)
		fmt.Fprintln(a.Out)
		if err != nil {
			return err
		}
		if o.password == "" {
			return &exitError{code: 1, text: "Error: Password Required"}
		}
	}
	return nil
}

// readLine reads a line from the terminal, and gives the terminal back whatever happens, also when the user gives up by a signal.
func readLine(in *bufio.Reader, state *term.State) (string, error) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, heeded(os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)...)
	defer signal.Stop(signals)
	type result struct {
		line string
		err  error
	}
	got := make(chan result, 1)
	go func() {
		line, err := in.ReadString('\n')
		got <- result{line, err}
	}()
	select {
	case <-signals:
		return "", errors.Join(&exitError{code: 130}, state.Restore())
	case r := <-got:
		if err := state.Restore(); err != nil {
			return "", err
		}
		if r.err != nil && (r.err != io.EOF || r.line == "") {
			return "", &exitError{code: 1, text: "Error: nothing was entered"}
		}
		return strings.TrimRight(r.line, "\r\n"), nil
	}
}

// login lets the engine ask the registry, and keeps what it took.
func (a *app) login(ctx context.Context, file *credentials.File, server string, auth credentials.Auth) error {
	api, err := a.engine()
	if err != nil {
		return err
	}
	var answer registry.AuthResponse
	if err := api.Post(ctx, "/auth", nil, auth, &answer); err != nil {
		return err
	}
	if answer.IdentityToken != "" {
		auth.Password, auth.IdentityToken = "", answer.IdentityToken
	}
	if file.Stored(server) == "" {
		fmt.Fprintf(a.Err, "\nWARNING! Your credentials are stored unencrypted in '%s'.\nConfigure a credential helper to remove this warning. See\nhttps://docs.docker.com/go/credential-store/\n\n", file.Path())
	}
	if err := file.Put(ctx, server, auth); err != nil {
		return fmt.Errorf("Error saving credentials: %w", err)
	}
	if answer.Status != "" {
		fmt.Fprintln(a.Out, answer.Status)
	}
	return nil
}

func newLogout() *verb {
	return &verb{
		use: "[SERVER]", max: 1, short: "Forget the credentials of a registry",
		long:    "Removes what `corten login` kept. Without a server it is the engine's default registry, as for `corten login`.",
		example: "corten logout registry.example.org:5000",
		run: func(ctx context.Context, a *app, args []string) error {
			file, err := credentials.Open(a.config().Dir)
			if err != nil {
				return err
			}
			server := credentials.DefaultServer
			if len(args) == 1 {
				server = credentials.Server(args[0])
			} else if !file.Nothing() { // no engine is asked, or started, to forget nothing
				if server, err = a.defaultServer(ctx); err != nil {
					return fmt.Errorf("which registry? name it, or let the engine tell its default: %w", err)
				}
			}
			fmt.Fprintln(a.Out, "Removing login credentials for "+server)
			if err := file.Delete(ctx, server); err != nil {
				fmt.Fprintf(a.Err, "WARNING: could not erase credentials:\n%s: %v\n", server, err)
			}
			return nil
		},
	}
}
