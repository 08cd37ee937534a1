package client

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"corten.dev/corten/internal/errs"
)

// certSet is what the folders of one host hold:
//
//	<folder>/<host[:port]>/*.crt           roots, beside the system's
//	<folder>/<host[:port]>/<name>.cert     a client certificate
//	<folder>/<host[:port]>/<name>.key      its key
type certSet struct {
	files     []certFile
	rootsOnly bool
	err       error
}

type certFile struct {
	path    string
	size    int64
	changed time.Time
}

// same tells whether nothing has changed.
func (c certSet) same(d certSet) bool {
	return c.rootsOnly == d.rootsOnly && slices.Equal(c.files, d.files) && (c.err == nil) == (d.err == nil)
}

// findCerts lists the files of a host in the first folder that has it.
func findCerts(dirs []string, host string) certSet {
	host = strings.ToLower(host)
	if host == "" || strings.ContainsAny(host, `/\`+"\x00") || strings.HasPrefix(host, ".") {
		return certSet{}
	}
	for _, dir := range dirs {
		folder := filepath.Join(dir, host)
		entries, err := os.ReadDir(folder)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return certSet{files: []certFile{{path: folder}}, err: fmt.Errorf("certificates of %s: %w", host, err)}
		}
		var set certSet
		for _, e := range entries {
			switch filepath.Ext(e.Name()) {
			case ".crt", ".cert", ".key":
			default:
				continue
			}
			path := filepath.Join(folder, e.Name())
			info, err := os.Stat(path)
			if err != nil {
				return certSet{files: []certFile{{path: path}}, err: fmt.Errorf("certificates of %s: %w", host, err)}
			}
			set.files = append(set.files, certFile{path, info.Size(), info.ModTime()})
		}
		return set
	}
	return certSet{}
}

// config reads the files.
func (c certSet) config() (*tls.Config, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.err != nil {
		return nil, c.err
	}
	has := func(path string) bool {
		return slices.ContainsFunc(c.files, func(f certFile) bool { return f.path == path })
	}
	for _, f := range c.files {
		stem, ext := strings.TrimSuffix(f.path, filepath.Ext(f.path)), filepath.Ext(f.path)
		switch {
		case ext == ".crt":
			if err := addRoots(conf, f.path); err != nil {
				return nil, err
			}
		case c.rootsOnly:
		case ext == ".cert":
			if !has(stem + ".key") {
				return nil, errs.New(errs.Invalid, "missing key %s for client certificate %s. CA certificates must use the extension .crt", stem+".key", f.path)
			}
			pair, err := tls.LoadX509KeyPair(f.path, stem+".key")
			if err != nil {
				return nil, errs.New(errs.Invalid, "client certificate %s: %w", f.path, err)
			}
			conf.Certificates = append(conf.Certificates, pair)
		case ext == ".key" && !has(stem+".cert"):
			return nil, errs.New(errs.Invalid, "missing client certificate %s for key %s", stem+".cert", f.path)
		}
	}
	return conf, nil
}

func addRoots(conf *tls.Config, path string) error {
	raw, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read root certificate: %w", err)
	}
	if conf.RootCAs == nil {
		if conf.RootCAs, err = x509.SystemCertPool(); err != nil {
			return fmt.Errorf("read the system's root certificates: %w", err)
		}
	}
	if !conf.RootCAs.AppendCertsFromPEM(raw) {
		return errs.New(errs.Invalid, "root certificate %s: no certificate in PEM form in it", path)
	}
	return nil
}
