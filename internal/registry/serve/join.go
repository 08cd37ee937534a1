package serve

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"time"

	"corten.dev/corten/internal/registry/server"
	"corten.dev/corten/internal/registry/server/access"
	"corten.dev/corten/internal/registry/server/config"
	"corten.dev/corten/internal/registry/server/disk"
	"corten.dev/corten/internal/registry/server/s3"
)

// openDriver opens the storage.
func openDriver(ctx context.Context, conf *config.Config, log *slog.Logger) (server.Driver, error) {
	if conf.Storage.Driver != "s3" {
		d, err := disk.New(disk.Options{Root: filepath.Join(conf.Root, "data"), Logger: log})
		if err != nil {
			return nil, fmt.Errorf("storage: %w", err)
		}
		return d, nil
	}
	c := conf.Storage.S3
	staging := c.Staging
	if staging == "" {
		staging = filepath.Join(conf.Root, "staging")
	}
	d, err := s3.New(ctx, s3.Options{
		Endpoint: c.Endpoint, Region: c.Region, Bucket: c.Bucket, Prefix: c.Prefix, PathStyle: c.PathStyle,
		KeyFile: c.KeyFile, CA: c.CA, Staging: staging, PartSize: int64(c.PartSize), Logger: log,
	})
	if err != nil {
		return nil, fmt.Errorf("storage: %w", err)
	}
	return d, nil
}

// limits are the bounds of the distribution API.
func limits(conf *config.Config) server.Limits {
	return server.Limits{
		Blob: int64(conf.Limits.Blob), Manifest: int64(conf.Limits.Manifest), Uploads: conf.Limits.Uploads, Grace: time.Duration(conf.Collect.Grace),
	}
}

// rights turns the rules of the file into those of the guard.
func rights(conf *config.Config) []access.Rule {
	var rules []access.Rule
	if len(conf.Rules) == 0 { // who is a user may do everything
		rules = append(rules, access.Rule{Users: []string{"*"}, Repositories: []string{"**"}, Actions: []server.Action{"*"}})
	}
	if conf.Auth.AnonymousPull {
		rules = append(rules, access.Rule{Anyone: true, Repositories: []string{"**"}, Actions: []server.Action{server.Pull}})
	}
	for _, r := range conf.Rules {
		rule := access.Rule{Users: slices.Clone(r.Users), Anyone: r.Anyone, Repositories: r.Repositories}
		for _, g := range r.Groups {
			rule.Users = append(rule.Users, conf.Groups[g]...)
		}
		for _, a := range r.Actions {
			rule.Actions = append(rule.Actions, server.Action(a))
		}
		rules = append(rules, rule)
	}
	return rules
}

// guarding is all about who may what; nil without a file of users.
type guarding struct {
	users  *access.Htpasswd
	rights *access.Rights
	keys   *access.Keys
	guard  *access.Guard
}

func openGuard(conf *config.Config, log *slog.Logger) (*guarding, error) {
	a := conf.Auth
	if a.Htpasswd == "" {
		return nil, nil
	}
	g := &guarding{rights: access.NewRights(rights(conf))}
	var err error
	if g.users, err = access.OpenHtpasswd(a.Htpasswd, log); err != nil {
		return nil, err
	}
	folder := a.Keys
	if folder == "" {
		folder = filepath.Join(conf.Root, "keys")
	}
	if g.keys, err = access.OpenKeys(access.KeysOptions{Folder: folder, Keep: time.Duration(max(a.RefreshLife, a.TokenLife)), Logger: log}); err != nil {
		return nil, err
	}
	g.guard, err = access.New(access.Options{
		Users: g.users, Rights: g.rights, Keys: g.keys, Mode: access.Mode(a.Mode), URL: conf.URL, TLS: conf.TLS.Cert != "" || conf.TLS.ACME != nil,
		Service: a.Service, TokenLife: time.Duration(a.TokenLife), RefreshLife: time.Duration(a.RefreshLife), Logger: log,
	})
	return g, err
}

// rules of what is kept.
func rules(conf *config.Config) []server.Rule {
	var all []server.Rule
	for _, r := range conf.Keep {
		all = append(all, server.Rule{
			Repositories: r.Repositories, Tags: r.Tags, Keep: r.Keep, KeepLast: r.KeepLast, KeepFor: time.Duration(r.KeepFor), Untagged: time.Duration(r.Untagged),
		})
	}
	return all
}

// restartKeys are the settings that a running registry cannot take over.
func restartKeys(old, now *config.Config) []string {
	var keys []string
	for _, k := range []struct {
		name string
		same bool
	}{
		{"addr", old.Addr == now.Addr}, {"root", old.Root == now.Root}, {"url", old.URL == now.URL}, {"metrics-addr", old.Metrics == now.Metrics},
		{"trusted-proxies", slices.Equal(old.Proxies, now.Proxies)}, {"tls.cert", old.TLS.Cert == now.TLS.Cert}, {"tls.key", old.TLS.Key == now.TLS.Key},
		{"tls.acme", same(old.TLS.ACME, now.TLS.ACME)}, {"auth", sameAuth(old.Auth, now.Auth)}, {"storage", same(old.Storage, now.Storage)},
		{"cache", same(old.Cache, now.Cache)}, {"collect", old.Collect == now.Collect}, {"log-format", old.LogForm == now.LogForm},
		{"read-only", old.ReadOnly == now.ReadOnly}, {"no-delete", old.NoDelete == now.NoDelete}, {"access-log", old.Access == now.Access},
		{"limits of sizes", limits(old) == limits(now) && old.Limits.Repository == now.Limits.Repository},
	} {
		if !k.same {
			keys = append(keys, k.name)
		}
	}
	return keys
}

// sameAuth leaves out what the rules take over.
func sameAuth(a, b config.Auth) bool {
	a.AnonymousPull, b.AnonymousPull = false, false
	return a == b
}

func closeAll(closers []func() error) error {
	var all []error
	for i := len(closers) - 1; i >= 0; i-- {
		all = append(all, closers[i]())
	}
	return errors.Join(all...)
}
