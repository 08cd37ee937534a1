package serve

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"reflect"
	"sync"
	"syscall"
	"time"

	"corten.dev/corten/internal/registry/server"
	"corten.dev/corten/internal/registry/server/config"
	"corten.dev/corten/internal/task"
)

const (
	drainTime   = 30 * time.Second // what a request that is under way gets to end, once the registry is told to
	rotateEvery = time.Hour        // how often the signing keys' age is looked at
)

const serveWords = `Serve a registry. Most settings can stand in the configuration file as well, some only there: rights, limits, storage in S3, caching of
other registries, retention, certificates by ACME. SIGHUP reads the file, the users and the certificate again; SIGTERM ends what is under way, then the registry.`

// registry is everything joined. closers run backwards.
type registry struct {
	args    []string
	std     IO
	log     *slog.Logger
	level   *slog.LevelVar
	driver  server.Driver
	reg     *server.Registry
	guard   *guarding // nil: everybody may do everything
	limiter *limiter
	metrics *metrics
	certs   *certificate // nil without a certificate from files
	closers []func() error
	work    sync.WaitGroup

	mu   sync.Mutex // guards conf
	conf config.Config
}

func newLog(w io.Writer, form string, level slog.Leveler) *slog.Logger {
	opts := &slog.HandlerOptions{Level: level}
	if form == "json" {
		return slog.New(slog.NewJSONHandler(w, opts))
	}
	return slog.New(slog.NewTextHandler(w, opts))
}

func serve(ctx context.Context, args []string, std IO) (err error) {
	req, err := parse("serve", serveWords, args, std.Out, serveFlags)
	if err != nil {
		return err
	}
	if req.validate {
		fmt.Fprintln(std.Out, "configuration OK")
		return nil
	}
	r := &registry{args: args, std: std, conf: req.conf, level: new(slog.LevelVar)}
	if err := r.level.UnmarshalText([]byte(req.conf.LogLevel)); err != nil {
		return err
	}
	r.log = newLog(std.Err, req.conf.LogForm, r.level)
	ctx, cancel := context.WithCancel(ctx)
	defer func() {
		cancel()
		r.work.Wait()
		err = errors.Join(err, closeAll(r.closers))
	}()
	if err := r.join(ctx); err != nil {
		return err
	}
	failed, err := r.listen(ctx)
	if err != nil {
		return err
	}
	r.background(ctx)
	return r.wait(ctx, failed)
}

// join opens the storage and builds the handlers' parts over it.
func (r *registry) join(ctx context.Context) error {
	if err := os.MkdirAll(r.conf.Root, 0o700); err != nil {
		return fmt.Errorf("root: %w", err)
	}
	guard, err := openGuard(&r.conf, r.log)
	if err != nil {
		return err
	}
	r.guard = guard
	driver, err := openDriver(ctx, &r.conf, r.log)
	if err != nil {
		return err
	}
	ups, err := openUpstreams(&r.conf, driver, r.std.Version, r.log)
	if err != nil {
		return errors.Join(err, driver.Close())
	}
	r.metrics = newMetrics(driver, r.conf.Access, r.log)
	r.limiter = newLimiter(r.conf.Limits, time.Now)
	opts := server.Options{
		Driver: driver, Logger: r.log, Observer: r.metrics, Limits: limits(&r.conf), ReadOnly: r.conf.ReadOnly, NoDelete: r.conf.NoDelete,
	}
	if guard != nil {
		opts.Guard = guard.guard
	}
	var q *quota
	if limit := int64(r.conf.Limits.Repository); limit > 0 {
		q = &quota{inner: opts.Guard, limit: limit, log: r.log}
		opts.Guard, opts.Observer = q, observers{r.metrics.Finished, q.finished}
	}
	if ups != nil {
		opts.Upstreams = ups
	}
	if r.reg, err = server.New(opts); err != nil {
		return errors.Join(err, driver.Close())
	}
	if q != nil {
		q.count = r.reg.Usage
	}
	r.driver = driver
	r.closers = append(r.closers, r.reg.Close)
	return nil
}

// background starts what nobody asks for: new signing keys, and the collection if it is to run by itself.
func (r *registry) background(ctx context.Context) {
	r.work.Go(func() {
		tick := time.NewTicker(rotateEvery)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			if r.guard == nil {
				continue
			}
			r.rotateNow()
		}
	})
	every := time.Duration(r.conf.Collect.Every)
	if every == 0 {
		return
	}
	r.work.Go(func() {
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				r.collectNow(ctx)
			}
		}
	})
}

// rotateNow is one new signing key.
func (r *registry) rotateNow() {
	defer task.Contain(r.log, "new signing key", nil)
	if err := r.guard.keys.Rotate(); err != nil {
		r.log.Error("the signing key stays", "err", err)
	}
}

// collectNow is one collection. A bug in it must end neither the registry nor those that follow.
func (r *registry) collectNow(ctx context.Context) {
	defer task.Contain(r.log, "collection", nil)
	conf := r.settings()
	report, err := r.reg.Collect(ctx, server.CollectOptions{Rules: rules(&conf), Log: func(g server.Gone) {
		r.log.Info("collected", "kind", g.Kind, "repository", g.Repository, "name", g.Name, "size", g.Size, "why", g.Why)
	}})
	if err != nil {
		if ctx.Err() == nil {
			r.log.Error("collection ends early; what is left goes the next time", "err", err)
		}
		return
	}
	r.metrics.collected(report)
	r.log.Info("collection done", "tags", report.Tags, "manifests", report.Manifests, "blobs", report.Blobs, "uploads", report.Uploads, "bytes", report.Bytes, "kept", report.Kept, "took", report.Duration)
}

func (r *registry) settings() config.Config {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.conf
}

// wait serves until a signal or a failure, and drains.
func (r *registry) wait(ctx context.Context, failed <-chan error) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			return err
		case sig := <-r.std.Signals:
			if sig == syscall.SIGHUP {
				r.reload()
				continue
			}
			r.log.Info("the registry ends; requests that are under way end first", "signal", sig.String())
			return nil // the closers drain
		}
	}
}

// reload takes over what can change, or nothing.
func (r *registry) reload() {
	req, err := parse("serve", serveWords, r.args, io.Discard, serveFlags)
	var certs func()
	if err == nil && r.certs != nil {
		certs, err = r.certs.read()
	}
	if err == nil && r.guard != nil && req.conf.Auth.Htpasswd != "" {
		err = r.guard.users.Reload()
	}
	if err != nil {
		r.log.Error("reload: the settings stay as they were", "err", err)
		return
	}
	if certs != nil {
		certs()
	}
	old := r.settings()
	if later := restartKeys(&old, &req.conf); len(later) > 0 {
		r.log.Warn("some settings apply at the next start", "keys", later)
	}
	if err := r.level.UnmarshalText([]byte(req.conf.LogLevel)); err != nil {
		r.log.Error("reload", "err", err)
	}
	if r.guard != nil {
		r.guard.rights.Set(rights(&req.conf))
	}
	r.limiter.set(req.conf.Limits)
	r.mu.Lock()
	r.conf.Rules, r.conf.Groups, r.conf.Keep, r.conf.LogLevel = req.conf.Rules, req.conf.Groups, req.conf.Keep, req.conf.LogLevel
	r.conf.Auth.AnonymousPull = req.conf.Auth.AnonymousPull
	r.conf.Limits.Requests, r.conf.Limits.Burst, r.conf.Limits.Bandwidth = req.conf.Limits.Requests, req.conf.Limits.Burst, req.conf.Limits.Bandwidth
	r.mu.Unlock()
	r.log.Info("settings read again")
}

// same compares settings.
func same(a, b any) bool { return reflect.DeepEqual(a, b) }

// gone is one line of `collect --json`.
type gone struct {
	Kind       string `json:"kind"`
	Repository string `json:"repository,omitempty"`
	Name       string `json:"name"`
	Size       int64  `json:"size,omitempty"`
	Why        string `json:"why,omitempty"`
}

func (g gone) print(w io.Writer, asJSON bool) {
	if asJSON {
		_ = json.NewEncoder(w).Encode(g)
		return
	}
	name := g.Name
	if g.Repository != "" {
		name = g.Repository + " " + name
	}
	fmt.Fprintf(w, "%-9s %s (%s)\n", g.Kind, name, g.Why)
}
