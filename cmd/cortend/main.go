// Command cortend is the engine: it reads the settings, joins the rooms' drivers to the engine's services, and serves them.
//
//	cortend [flags]            the engine
//	cortend runtime COMMAND    the OCI runtime's command line
//	cortend registry COMMAND   a registry for images
//	cortend portproxy          the small process for ports that the kernel cannot forward ([::1]); started by the engine itself
//	cortend portproxy names …  the one that answers names on user-defined networks; likewise
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/linux/caps"
	"corten.dev/corten/internal/linux/systemd"
	"corten.dev/corten/internal/network/dns"
	"corten.dev/corten/internal/network/portproxy"
	"corten.dev/corten/internal/registry/program"
	"corten.dev/corten/internal/runtimecli"
	"corten.dev/corten/internal/server"
	"corten.dev/corten/internal/settings"
	"corten.dev/corten/internal/version"
)

func main() { os.Exit(run(os.Args[1:])) }

func run(args []string) int {
	if len(args) > 0 {
		switch args[0] {
		case "runtime":
			return runtimecli.Main(background(), args[1:], runtimecli.IO{In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Version: version.Version})
		case "portproxy":
			if len(args) > 1 && args[1] == "names" {
				return dns.Main(strings.Join(args[2:], ""))
			}
			return portproxy.Main()
		case "registry":
			fmt.Fprintln(os.Stderr, "cortend registry:", program.Exec(os.Args, os.Environ()))
			return 1
		}
	}
	set, err := settings.Parse(args, os.Stdout)
	if err == nil {
		err = checkLogs(set, openPlugins(set, slog.New(slog.DiscardHandler)))
	}
	switch {
	case errors.Is(err, pflag.ErrHelp):
		return 0
	case err != nil:
		fmt.Fprintln(os.Stderr, "cortend:", err)
		return 1
	case set.Version:
		fmt.Printf("Corten version %s, build %s\n", version.Version, version.Commit)
		return 0
	case set.Validate:
		fmt.Println("configuration OK")
		return 0
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	level := logLevel(set)
	log := newLog(os.Stderr, set.LogFormat, level)
	if err := serve(set, level, log); err != nil {
		log.Error("cortend ends", "err", err)
		return 1
	}
	return 0
}

func logLevel(set settings.Settings) *slog.LevelVar {
	level := new(slog.LevelVar)
	if err := level.UnmarshalText([]byte(set.LogLevel)); err != nil || set.Debug {
		level.Set(slog.LevelDebug)
	}
	return level
}

func newLog(w io.Writer, format string, level slog.Leveler) *slog.Logger {
	opts := &slog.HandlerOptions{Level: level}
	if format == "json" {
		return slog.New(slog.NewJSONHandler(w, opts))
	}
	return slog.New(slog.NewTextHandler(w, opts))
}

// serve runs the engine until it is told to end.
func serve(set settings.Settings, level *slog.LevelVar, log *slog.Logger) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("cortend needs root in this version: namespaces, overlay mounts and bridges belong to it (rootless engines come later)")
	}
	lacking, err := caps.Lacking("CAP_SYS_ADMIN", "CAP_NET_ADMIN")
	if err != nil {
		return err
	}
	if len(lacking) > 0 {
		return fmt.Errorf("cortend lacks %s: mounts, namespaces and networks need it; a service manager gives it by CapabilityBoundingSet=, and a container around the engine has it with --privileged", strings.Join(lacking, " and "))
	}
	for _, dir := range []string{set.DataRoot, set.ExecRoot} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return err
		}
		unlock, err := lock(dir, lockPatience)
		if err != nil {
			return err
		}
		defer unlock()
	}
	if err := os.WriteFile(set.Pidfile, []byte(strconv.Itoa(os.Getpid())+"\n"), 0o644); err != nil {
		return err
	}
	defer os.Remove(set.Pidfile)

	ends := make(chan os.Signal, 2)
	signal.Notify(ends, unix.SIGINT, unix.SIGTERM)
	reloads := make(chan os.Signal, 1)
	signal.Notify(reloads, unix.SIGHUP)

	eng, err := join(set, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, eng.close()) }()
	failed, err := eng.listen(set)
	if err != nil {
		return err
	}
	log.Info("cortend serves", "version", version.Version, "api", server.MaxAPI(), "hosts", set.Hosts)
	if err := systemd.Notify("READY=1"); err != nil {
		log.Warn("the service manager does not know that the engine serves", "err", err)
	}
	for {
		select {
		case sig := <-ends:
			log.Info("cortend ends; containers go on", "signal", sig.String())
			return nil
		case err := <-failed:
			return err
		case <-reloads:
			reload(set, level, log)
		}
	}
}

// reload takes over what can change while the engine runs: how much it says.
func reload(old settings.Settings, level *slog.LevelVar, log *slog.Logger) {
	set, err := settings.Parse(os.Args[1:], io.Discard)
	if err != nil {
		log.Error("reload: the settings stay as they were", "err", err)
		return
	}
	level.Set(logLevel(set).Level())
	log.Info("settings read again", "log-level", level.Level().String(), "other settings", "apply at the next start")
}

// lockPatience is how long a new engine waits for one that was killed to be gone: the kernel lets go of its lock when the last of its threads has left the kernel.
const lockPatience = 5 * time.Second

// lock keeps a second engine off a folder.
func lock(dir string, patience time.Duration) (func(), error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	// A lock of the process, not of the descriptor: a monitor that was just forked has the descriptor for a moment, and must not hold the lock when this engine is killed.
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		err := unix.FcntlFlock(f.Fd(), unix.F_SETLK, &unix.Flock_t{Type: unix.F_WRLCK})
		if err == nil {
			return func() { _ = f.Close() }, nil // the lock ends with the descriptor
		}
		if busy := errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES); !busy || time.Now().After(end) {
			return nil, errors.Join(fmt.Errorf("another engine%s uses %s: %w", holder(f), dir, err), f.Close())
		}
	}
}

// holder names the process that has the lock, if there still is one.
func holder(f *os.File) string {
	who := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(f.Fd(), unix.F_GETLK, &who); err != nil || who.Type == unix.F_UNLCK || who.Pid <= 0 {
		return ""
	}
	return fmt.Sprintf(" (process %d)", who.Pid)
}

// background is for work that no request asked for.
func background() context.Context { return context.Background() }
