package source

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/moby/buildkit/util/gitutil"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/task"
)

// gitRun runs git for one source. It reads no configuration but what stands here, runs no hook, asks nobody for a password, speaks only the protocols of remotes, and dies with its
// caller. Secrets travel in its environment, never in its arguments.
type gitRun struct {
	program  string
	tmp      string // a folder of its own: home, sockets
	config   [][2]string
	env      []string
	progress build.Progress
	log      *slog.Logger
	scrub    []string // what must not be seen in output
	max      int64    // bytes that its repository may have
}

// gitRun prepares the runs for a source; release ends what serves them.
func (s *Sources) gitRun(ctx context.Context, env build.Env, id gitID) (g *gitRun, release func(), err error) {
	program, err := exec.LookPath(s.opts.Git)
	if err != nil {
		return nil, nil, errs.New(errs.Unavailable, "git repository %s: the program git is not installed on this host: install it (apt-get install git, apk add git)", id.name())
	}
	tmp, err := os.MkdirTemp(s.tmp(), "git-")
	if err != nil {
		return nil, nil, err
	}
	release = func() {
		if err := os.RemoveAll(tmp); err != nil {
			s.opts.Log.Warn("folder of a git source stays until the next start", "folder", tmp, "err", err)
		}
	}
	g = &gitRun{program: program, tmp: tmp, log: s.opts.Log, progress: env.Progress, max: s.opts.MaxBytes}
	g.config = [][2]string{
		{"core.hooksPath", "/dev/null"}, {"core.fsmonitor", "false"}, {"core.protectHFS", "true"}, {"core.protectNTFS", "true"}, {"gc.auto", "0"}, {"maintenance.auto", "false"},
		{"safe.directory", "*"}, {"init.defaultBranch", "master"}, {"advice.detachedHead", strconv.FormatBool(id.advice)}, {"credential.helper", ""},
		{"http.lowSpeedLimit", "1000"}, {"http.lowSpeedTime", "30"}, {"fetch.recurseSubmodules", "false"}, {"protocol.version", "2"},
	}
	g.env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + tmp, "LC_ALL=C", "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null", "GIT_TERMINAL_PROMPT=0", "GIT_ASKPASS=/bin/false", "SSH_ASKPASS=/bin/false",
		"GIT_ALLOW_PROTOCOL=http:https:ssh:git",
	}
	// Proxies, and whom this host trusts.
	for _, name := range []string{"http_proxy", "https_proxy", "no_proxy", "all_proxy", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "GIT_SSL_CAINFO", "GIT_SSL_CAPATH", "SSL_CERT_FILE", "SSL_CERT_DIR"} {
		if v := os.Getenv(name); v != "" {
			g.env = append(g.env, name+"="+v)
		}
	}
	if err := g.credentials(ctx, env, id); err != nil {
		release()
		return nil, nil, err
	}
	if id.remote.Scheme == gitutil.SSHProtocol {
		stop, err := g.ssh(ctx, env, id)
		if err != nil {
			release()
			return nil, nil, err
		}
		remove := release
		release = func() { stop(); remove() }
	}
	return g, release, nil
}

// credentials finds the header for the repository's host.
func (g *gitRun) credentials(ctx context.Context, env build.Env, id gitID) error {
	if id.remote.Scheme != gitutil.HTTPProtocol && id.remote.Scheme != gitutil.HTTPSProtocol {
		return nil
	}
	header, err := id.authorization(ctx, env)
	if err != nil || header == "" {
		return err
	}
	g.scrub = append(g.scrub, header, header[strings.LastIndexByte(header, ' ')+1:])
	// For this host only: submodules may lie elsewhere.
	g.config = append(g.config, [2]string{"http." + id.remote.Scheme + "://" + id.remote.Host + "/.extraheader", "Authorization: " + header})
	return nil
}

// authorization is the value of the header; the names of secrets may be extended by the host, as buildx does.
func (id gitID) authorization(ctx context.Context, env build.Env) (string, error) {
	if u := id.remote.User; u != nil {
		if pass, ok := u.Password(); ok {
			return basic(u.Username(), pass), nil
		}
	}
	ses, err := session(ctx, env, "")
	if err != nil || ses.Secrets == nil {
		return "", err
	}
	for _, kind := range []struct {
		name  string
		value func(string) string
	}{{id.headerSecret, func(v string) string { return v }}, {id.tokenSecret, func(v string) string { return basic("x-access-token", v) }}} {
		if kind.name == "" {
			continue
		}
		for _, name := range []string{kind.name + "." + id.remote.Host, kind.name} {
			value, err := ses.Secrets.Secret(ctx, name)
			if err == nil {
				return kind.value(strings.TrimSpace(string(value))), nil
			}
			if !errors.Is(err, errs.NotFound) {
				return "", fmt.Errorf("secret %s: %w", name, err)
			}
		}
	}
	return "", nil
}

func basic(user, pass string) string {
	return "basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+pass))
}

// ssh joins git's ssh with the asker's agent, by a socket in the folder that only we can enter.
func (g *gitRun) ssh(ctx context.Context, env build.Env, id gitID) (stop func(), err error) {
	if id.knownHosts == "" {
		return nil, errs.New(errs.Invalid, "git repository %s: the host's key is not known, so it cannot be told from another: give it (%s)", id.name(), "git.knownsshhosts")
	}
	hosts := filepath.Join(g.tmp, "known_hosts")
	if err := os.WriteFile(hosts, []byte(id.knownHosts), 0o600); err != nil {
		return nil, err
	}
	g.env = append(g.env, "GIT_SSH_VARIANT=ssh", "GIT_SSH_COMMAND=ssh -F /dev/null -o BatchMode=yes -o ConnectTimeout=30 -o ServerAliveInterval=15 -o ServerAliveCountMax=4 -o StrictHostKeyChecking=yes "+
		"-o GlobalKnownHostsFile=/dev/null -o UserKnownHostsFile="+hosts)
	if id.sshSocket == "" {
		return func() {}, nil
	}
	ses, err := session(ctx, env, "")
	if err != nil {
		return nil, err
	}
	if ses.SSH == nil {
		return nil, errs.New(errs.NotFound, "git repository %s: unset ssh forward key %s: give --ssh %s", id.name(), id.sshSocket, id.sshSocket)
	}
	if err := ses.SSH.Offers(ctx, id.sshSocket); err != nil {
		return nil, fmt.Errorf("git repository %s: ssh agent %s: %w", id.name(), id.sshSocket, err)
	}
	socket := filepath.Join(g.tmp, "agent")
	l, err := (&net.ListenConfig{}).Listen(ctx, "unix", socket)
	if err != nil {
		return nil, err
	}
	g.env = append(g.env, "SSH_AUTH_SOCK="+socket)
	ctx, cancel := context.WithCancel(ctx)
	var work sync.WaitGroup
	work.Go(func() {
		defer task.Contain(g.log, "agent of a git source", nil)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			work.Go(func() {
				defer task.Contain(g.log, "agent of a git source", nil)
				forward(ctx, conn, func() (io.ReadWriteCloser, error) { return ses.SSH.Dial(ctx, id.sshSocket) })
			})
		}
	})
	return func() {
		cancel()
		_ = l.Close() // it was only ours
		work.Wait()
	}, nil
}

// forward joins one connection to the agent with a new one of the asker, until one of both ends.
func forward(ctx context.Context, conn net.Conn, dial func() (io.ReadWriteCloser, error)) {
	defer conn.Close()
	agent, err := dial()
	if err != nil {
		return // ssh says that the agent does not answer
	}
	defer agent.Close()
	ended := make(chan struct{}, 2)
	copying := func(dst io.Writer, src io.Reader) {
		_, _ = io.Copy(dst, src) // whichever side ends first ends both
		ended <- struct{}{}
	}
	go copying(agent, conn)
	go copying(conn, agent)
	select {
	case <-ended:
	case <-ctx.Done():
	}
}

// maxGitOutput bounds what is kept of git's output.
const maxGitOutput = 8 << 20

// run runs git and gives its standard output. Its messages go to the step's log when loud.
func (g *gitRun) run(ctx context.Context, dir string, loud bool, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, g.program, args...)
	cmd.Dir = dir
	cmd.Env = append([]string{}, g.env...)
	cmd.Env = append(cmd.Env, "GIT_CONFIG_COUNT="+strconv.Itoa(len(g.config)))
	for i, kv := range g.config {
		n := strconv.Itoa(i)
		cmd.Env = append(cmd.Env, "GIT_CONFIG_KEY_"+n+"="+kv[0], "GIT_CONFIG_VALUE_"+n+"="+kv[1])
	}
	// A group of its own, so that its helpers (ssh, git-remote-https) end with it; and with us.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	var out, msg bounded
	out.max, msg.max = maxGitOutput, 64<<10
	cmd.Stdout, cmd.Stderr = &out, &msg
	if loud {
		cmd.Stderr = io.MultiWriter(&msg, &scrubbed{g})
	}
	done := make(chan error, 1)
	go func() { // the death signal comes when the thread ends that started the program: it must not end before
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		var err error
		defer func() { done <- err }()
		defer task.Contain(g.log, "git "+args[0], &err)
		err = cmd.Run()
	}()
	if err := <-done; err != nil {
		if ctx.Err() != nil {
			return "", context.Cause(ctx)
		}
		return out.String(), &gitError{verb: args[0], message: g.clean(lastLines(msg.String())), whole: msg.String(), err: err}
	}
	if out.cut {
		return "", errs.New(errs.Invalid, "git %s: more than %d bytes of output", args[0], out.max)
	}
	return out.String(), nil
}

// gitError is a git that failed.
type gitError struct {
	verb, message string
	whole         string // may have secrets: not to be shown
	err           error
}

func (e *gitError) Error() string {
	if e.message == "" {
		return fmt.Sprintf("git %s: %v", e.verb, e.err)
	}
	return fmt.Sprintf("git %s: %s", e.verb, e.message)
}

func (e *gitError) Unwrap() error { return e.err }

func (g *gitRun) clean(s string) string {
	for _, secret := range g.scrub {
		s = strings.ReplaceAll(s, secret, "xxxxx")
	}
	return s
}

// lastLines is what git said of an error, else what it said last, as one line.
func lastLines(s string) string {
	lines := strings.FieldsFunc(s, func(r rune) bool { return r == '\n' || r == '\r' })
	bad := slices.DeleteFunc(slices.Clone(lines), func(l string) bool { return !strings.HasPrefix(l, "fatal: ") && !strings.HasPrefix(l, "error: ") })
	if len(bad) > 0 {
		lines = bad
	}
	if len(lines) > 3 {
		lines = lines[len(lines)-3:]
	}
	return strings.Join(lines, "; ")
}

// scrubbed is a step's log without secrets.
type scrubbed struct{ g *gitRun }

func (s *scrubbed) Write(p []byte) (int, error) {
	s.g.progress.Log(2, []byte(s.g.clean(string(p))))
	return len(p), nil
}

// bounded keeps the last max bytes.
type bounded struct {
	bytes.Buffer
	max int
	cut bool
}

func (b *bounded) Write(p []byte) (int, error) {
	n := len(p)
	if b.Len()+n > b.max {
		b.cut = true
		if n > b.max {
			p = p[n-b.max:]
		}
		b.Next(b.Len() + len(p) - b.max)
	}
	b.Buffer.Write(p) // never fails
	return n, nil
}

// watched runs work that fills a folder, and ends it when that has grown beyond the bound.
func (g *gitRun) watched(ctx context.Context, dir string, work func(ctx context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var watch sync.WaitGroup
	watch.Go(func() {
		defer task.Contain(g.log, "watch a git repository", nil)
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				if n := treeBytes(dir); n > g.max {
					cancel(errs.New(errs.Invalid, "the repository brings more than %d bytes", g.max))
				}
			}
		}
	})
	err := work(ctx)
	cancel(nil)
	watch.Wait()
	return err
}

// treeBytes adds up the files below dir; what vanishes meanwhile does not count.
func treeBytes(dir string) (n int64) {
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error { // never fails
		if err == nil && d.Type().IsRegular() {
			if info, err := d.Info(); err == nil {
				n += info.Size()
			}
		}
		return nil
	})
	return n
}
