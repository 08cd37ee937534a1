package runtimecli

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/runtime"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// starting are the flags that create, run and exec share.
type starting struct {
	bundle, console, pidfdSocket, pidFile string
	noPivot, noKeyring                    bool
	preserve                              int
}

func (s *starting) common(fs *flag.FlagSet) {
	fs.StringVar(&s.console, "console-socket", "", "`path` of a unix socket that gets the terminal's master")
	fs.StringVar(&s.pidfdSocket, "pidfd-socket", "", "`path` of a unix socket that gets a pidfd of the process")
	fs.StringVar(&s.pidFile, "pid-file", "", "`file` to write the pid to")
	fs.IntVar(&s.preserve, "preserve-fds", 0, "how many descriptors from 3 on the process inherits")
}

func (s *starting) container(fs *flag.FlagSet) {
	s.common(fs)
	fs.StringVar(&s.bundle, "bundle", "", "`folder` with config.json; the working directory if empty")
	fs.StringVar(&s.bundle, "b", "", "short for --bundle")
	fs.BoolVar(&s.noPivot, "no-pivot", false, "move the root instead of pivoting, for a host whose root is a ramdisk")
	fs.BoolVar(&s.noKeyring, "no-new-keyring", false, "keep the session keyring of the caller")
}

// maxConfig bounds a config.json.
const maxConfig = 16 << 20

// ReadSpec reads the config.json of a bundle.
func ReadSpec(bundle string) (*specs.Spec, error) {
	name := filepath.Join(bundle, "config.json")
	st, err := os.Stat(name)
	if err != nil {
		return nil, fmt.Errorf("bundle: %w", err)
	}
	if st.Size() > maxConfig {
		return nil, errs.New(errs.Invalid, "bundle: %s: %d bytes are too many", name, st.Size())
	}
	body, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("bundle: %w", err)
	}
	var spec specs.Spec
	if err := json.Unmarshal(body, &spec); err != nil {
		return nil, errs.New(errs.Invalid, "bundle: %s: %w", name, err)
	}
	return &spec, nil
}

// options makes the runtime's options of the flags. The returned function closes what was opened.
func (c *call) options(s *starting, id string) (opts runtime.RunOptions, done func(), err error) {
	done = func() {}
	bundle := s.bundle
	if bundle == "" {
		bundle = "."
	}
	if bundle, err = filepath.Abs(bundle); err != nil {
		return opts, done, fmt.Errorf("bundle: %w", err)
	}
	spec, err := ReadSpec(bundle)
	if err != nil {
		return opts, done, err
	}
	if spec.Process != nil && spec.Process.Terminal == (s.console == "") && s.console != "" {
		return opts, done, errs.New(errs.Invalid, "--console-socket is given but process.terminal is false")
	}
	launcher, done, err := c.launcher(s.console)
	return runtime.RunOptions{
		ID: id, Bundle: bundle, Spec: spec, Launcher: launcher, PreserveFDs: s.preserve + listening(spec.Process), NoPivot: s.noPivot, NoNewKeyring: s.noKeyring,
	}, done, err
}

// listening is how many sockets of systemd's were given to us, from descriptor 3 on. They are the container's, whose first process is told of them.
func listening(proc *specs.Process) int {
	n, err := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	if err != nil || n <= 0 || proc == nil || os.Getenv("LISTEN_PID") != strconv.Itoa(os.Getpid()) {
		return 0
	}
	proc.Env = append(proc.Env, "LISTEN_FDS="+strconv.Itoa(n), "LISTEN_PID=1")
	return n
}

// launcher starts processes with our own standard files; the terminal goes to the console socket, if there is one.
func (c *call) launcher(console string) (runtime.Launcher, func(), error) {
	std := [3]*os.File{c.In, c.Out, c.Err}
	if console == "" {
		return runtime.WithStdio(std, nil), func() {}, nil
	}
	f, err := dialFile(console)
	if err != nil {
		return nil, func() {}, fmt.Errorf("console socket: %w", err)
	}
	return runtime.WithStdio(std, f), func() { f.Close() }, nil
}

func dialFile(path string) (*os.File, error) {
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return conn.File()
}

// started tells the caller of a new process.
func (s *starting) started(pid int, pidfd *os.File) error {
	if s.pidfdSocket != "" && pidfd != nil {
		f, err := dialFile(s.pidfdSocket)
		if err != nil {
			return fmt.Errorf("pidfd socket: %w", err)
		}
		err = unix.Sendmsg(int(f.Fd()), []byte("pidfd"), unix.UnixRights(int(pidfd.Fd())), nil, 0)
		if err = errors.Join(err, f.Close()); err != nil {
			return fmt.Errorf("pidfd socket: %w", err)
		}
	}
	if s.pidFile == "" {
		return nil
	}
	// Readers wait for the name: it appears with its content.
	tmp := filepath.Join(filepath.Dir(s.pidFile), "."+filepath.Base(s.pidFile))
	if err := os.WriteFile(tmp, []byte(strconv.Itoa(pid)), 0o644); err != nil {
		return fmt.Errorf("pid file: %w", err)
	}
	if err := os.Rename(tmp, s.pidFile); err != nil {
		return fmt.Errorf("pid file: %w", err)
	}
	return nil
}

func create(c *call, fs *flag.FlagSet) func([]string) (int, error) {
	var s starting
	s.container(fs)
	return func(args []string) (int, error) {
		id, err := one(args)
		if err != nil {
			return 1, err
		}
		opts, done, err := c.options(&s, id)
		defer done()
		if err != nil {
			return 1, err
		}
		if opts.Spec.Process != nil && opts.Spec.Process.Terminal && s.console == "" {
			return 1, errs.New(errs.Invalid, "a terminal needs --console-socket")
		}
		opts.Gate = true
		ctr, err := c.rt.Create(c.ctx, opts)
		if err != nil {
			return 1, err
		}
		if err := s.started(ctr.Pid(), ctr.PIDFD()); err != nil {
			return 1, errors.Join(err, ctr.Delete(c.ctx, true))
		}
		return 0, ctr.Close()
	}
}

func run(c *call, fs *flag.FlagSet) func([]string) (int, error) {
	var s starting
	s.container(fs)
	var detach, keep bool
	fs.BoolVar(&detach, "detach", false, "do not wait for the end")
	fs.BoolVar(&detach, "d", false, "short for --detach")
	fs.BoolVar(&keep, "keep", false, "do not remove the container after its end")
	return func(args []string) (int, error) {
		id, err := one(args)
		if err != nil {
			return 1, err
		}
		opts, done, err := c.options(&s, id)
		defer done()
		if err != nil {
			return 1, err
		}
		own, err := c.ownTerminal(&opts.Launcher, opts.Spec.Process, &s, detach)
		if err != nil {
			return 1, err
		}
		defer own.close()
		// Through the gate, so that the pid file is there before the program runs.
		opts.Gate = true
		ctr, err := c.rt.Create(c.ctx, opts)
		if err != nil {
			return 1, err
		}
		fail := func(err error) (int, error) {
			err = errors.Join(err, ctr.Delete(c.ctx, true))
			return 1, err
		}
		if err := s.started(ctr.Pid(), ctr.PIDFD()); err != nil {
			return fail(err)
		}
		if err := ctr.Start(c.ctx); err != nil {
			return fail(err)
		}
		if detach {
			return 0, ctr.Close()
		}
		code, err := c.attend(ctr.Pid(), ctr.PIDFD(), own)
		if err != nil {
			return fail(err)
		}
		if keep {
			return code, ctr.Close()
		}
		return code, ctr.Delete(c.ctx, false)
	}
}
