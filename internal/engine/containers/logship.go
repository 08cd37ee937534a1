package containers

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"corten.dev/corten/internal/container"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/logs"
	"corten.dev/corten/internal/logs/logfile"
	"corten.dev/corten/internal/logs/ship"
	"corten.dev/corten/internal/monitor"
)

// How much of its own log a container keeps: more where drivers are fed from it, so that it lasts longer while a destination is away (Docker's cache is as large).
const (
	ownSize      = 20 << 20
	ownFiles     = 3
	ownFilesShip = 5
)

// How long the removal of a container waits for a destination: while it takes messages, and not for one that is away.
const (
	drainGrace = 2 * time.Second
	drainLimit = 10 * time.Second
)

// logConfig reads and checks --log-driver and --log-opt.
func (s *Service) logConfig(cfg container.LogConfig) (*ship.Config, error) {
	return ship.Parse(s.LogDrivers, ship.Request{Names: cfg.Type, Options: cfg.Config, Own: cfg.Own})
}

// defaultLog fills in what was not said: the engine's default driver, and its options where the driver is the default one.
func (s *Service) defaultLog(log *container.LogConfig) {
	if log.Type == "" {
		log.Type, log.Own = s.LogConfig.Type, s.LogConfig.Own
	} else if log.Type != s.LogConfig.Type {
		return
	}
	opts := maps.Clone(s.LogConfig.Config)
	if opts == nil {
		opts = map[string]string{}
	}
	maps.Copy(opts, log.Config)
	log.Config = opts
}

// ownLog says where the monitor writes the container's own log, and makes the folder.
func (s *Service) ownLog(rec *container.Record) (monitor.LogOptions, error) {
	cfg, err := s.logConfig(rec.Host.Log)
	if err != nil || cfg.None {
		return monitor.LogOptions{}, err
	}
	opts := monitor.LogOptions{Path: s.logDir(rec.ID), MaxSize: ownSize, MaxFiles: ownFiles, NonBlocking: cfg.NonBlocking, BufferSize: cfg.Buffer}
	if len(cfg.Targets) > 0 {
		opts.MaxFiles = ownFilesShip
	}
	if cfg.Own.MaxSize != 0 {
		opts.MaxSize = cfg.Own.MaxSize
	}
	if cfg.Own.MaxSize < 0 {
		opts.MaxSize = logfile.Unbounded
	}
	if cfg.Own.MaxFiles > 0 {
		opts.MaxFiles = cfg.Own.MaxFiles
	}
	if err := os.Mkdir(opts.Path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return opts, err
	}
	return opts, nil
}

// logPath is where the log is for those who look for a file: that of json-file, where it was asked for by name. It is asked for whenever a container is shown, and looks at names only.
func (s *Service) logPath(rec *container.Record) string {
	names := strings.Split(rec.Host.Log.Type, ",")
	switch {
	case rec.Host.Log.Own, slices.Equal(names, []string{ship.Local}):
		return s.logDir(rec.ID)
	case slices.Contains(names, "json-file"):
		return s.jsonPath(rec.ID)
	}
	return ""
}

// readable tells whether logs may be shown. It needs no driver: that of an old container may be a plugin that is gone.
func readable(log container.LogConfig) bool {
	off, err := strconv.ParseBool(log.Config["cache-disabled"])
	return log.Type != ship.None && (err != nil || !off)
}

func (s *Service) jsonPath(id string) string { return filepath.Join(s.dir(id), id+"-json.log") }

// logInfo is what log drivers learn of a container.
func (s *Service) logInfo(rec *container.Record, opts map[string]string) *ship.Info {
	host, err := os.Hostname()
	if err != nil {
		host = "localhost"
	}
	return &ship.Info{
		Config: opts, ContainerID: rec.ID, ContainerName: "/" + rec.Name, ContainerEntrypoint: rec.Path, ContainerArgs: rec.Args, ContainerImageID: rec.Image.String(),
		ContainerImageName: rec.ImageRef, ContainerCreated: rec.Created, ContainerEnv: rec.Config.Env, ContainerLabels: rec.Config.Labels, LogPath: s.jsonPath(rec.ID), DaemonName: "docker", Host: host,
	}
}

// followers makes those that hand the container's log on. One that still has to do with the last run stays.
func (s *Service) followers(ctr *live) ([]*ship.Follower, error) {
	rec := ctr.record()
	cfg, err := s.logConfig(rec.Host.Log)
	if err != nil || len(cfg.Targets) == 0 {
		return nil, err
	}
	ctr.mu.Lock()
	old := ctr.shipping
	ctr.mu.Unlock()
	var all []*ship.Follower
	for _, t := range cfg.Targets {
		var f *ship.Follower
		for _, have := range old {
			if have.Status().Driver == t.Driver.Name() && have.Busy() {
				f = have
			}
		}
		if f == nil {
			f = s.newFollower(ctr, rec, t, cfg.Unreadable)
		}
		all = append(all, f)
	}
	ctr.mu.Lock()
	ctr.shipping = all
	ctr.mu.Unlock()
	return all, nil
}

// reachLogs opens the destinations before somebody's start: as in Docker, a container whose log cannot go where it should does not start. A restart by policy, or at the engine's own
// start, is not prevented by a destination that is away: nobody is there to try again.
func (s *Service) reachLogs(ctx context.Context, ctr *live) error {
	all, err := s.followers(ctr)
	for _, f := range all {
		if err == nil {
			err = f.Reach(ctx)
		}
	}
	if err == nil {
		return nil
	}
	return fmt.Errorf("failed to create task for container: failed to initialize logging driver: %w", errs.As(errs.Unavailable, err))
}

// followLogs has the log handed on until done closes and everything was.
func (s *Service) followLogs(ctr *live, done <-chan struct{}) {
	ctr.mu.Lock()
	all := ctr.shipping
	ctr.mu.Unlock()
	for _, f := range all {
		f.Run(done)
	}
	rec := ctr.record()
	if cfg, err := s.logConfig(rec.Host.Log); err != nil || !cfg.Own.Compress {
		return
	}
	s.background(func(ctx context.Context) {
		if err := logs.Compress(ctx, s.logDir(ctr.id), s.watches, done); err != nil && ctx.Err() == nil && !errors.Is(err, fs.ErrNotExist) {
			s.Log.Warn("a container's log stays uncompressed", "container", rec.Name, "error", err)
		}
	})
}

// trimLog lets go of what every destination has, for containers whose log nobody reads here (cache-disabled).
func (s *Service) trimLog(ctr *live) {
	ctr.mu.Lock()
	all := ctr.shipping
	ctr.mu.Unlock()
	low := int64(math.MaxInt64)
	for _, f := range all {
		low = min(low, f.Passed())
	}
	if err := logs.Trim(s.logDir(ctr.id), low); err != nil {
		s.Log.Warn("let go of what was sent of a log", "container", ctr.record().Name, "error", err)
	}
}

// goOnWithLogs hands on what an earlier engine did not.
func (s *Service) goOnWithLogs(ctr *live, done <-chan struct{}) {
	if _, err := os.Stat(s.logDir(ctr.id)); err != nil { // it never ran
		return
	}
	if _, err := s.followers(ctr); err != nil {
		s.Log.Error("hand a log on", "container", ctr.record().Name, "error", err)
		return
	}
	s.followLogs(ctr, done)
}

// drainLogs gives destinations the time to take what the container said last, before its log goes.
func (s *Service) drainLogs(ctx context.Context, ctr *live) {
	ctr.mu.Lock()
	all := ctr.shipping
	ctr.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, drainLimit)
	defer cancel()
	for _, f := range all {
		f.Drain(ctx, drainGrace)
		if st := f.Status(); f.Running() {
			s.Log.Warn("a container was removed before its log's destination had everything", "container", ctr.record().Name, "driver", st.Driver, "sent", st.Sent, "error", st.Error)
		}
		f.Close()
	}
}

// closeLogs stops all followers where they are; the next engine goes on there.
func (s *Service) closeLogs() {
	for _, ctr := range s.table.all() {
		ctr.mu.Lock()
		all := ctr.shipping
		ctr.mu.Unlock()
		for _, f := range all {
			f.Close()
		}
	}
	if err := s.watches.Close(); err != nil {
		s.Log.Warn("stop watching logs", "error", err)
	}
}
