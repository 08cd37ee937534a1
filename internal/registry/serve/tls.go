package serve

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/crypto/acme"
	"golang.org/x/crypto/acme/autocert"

	"corten.dev/corten/internal/errs"
)

// certLook is how often a handshake looks whether the certificate's file has changed: who renews it need not tell us.
const certLook = time.Minute

// certificate is one from files, read again when it was renewed.
type certificate struct {
	cert, key string
	log       *slog.Logger
	mu        sync.Mutex // guards what follows
	now       *tls.Certificate
	changed   time.Time
	next      time.Time
}

func (c *certificate) load() error {
	use, err := c.read()
	if err == nil {
		use()
	}
	return err
}

// read gives what puts the files' certificate in the place of the one in use.
func (c *certificate) read() (use func(), err error) {
	info, err := os.Stat(c.cert)
	if err != nil {
		return nil, fmt.Errorf("TLS certificate: %w", err)
	}
	pair, err := tls.LoadX509KeyPair(c.cert, c.key)
	if err != nil {
		return nil, errs.New(errs.Invalid, "TLS certificate %s with key %s: %w", c.cert, c.key, err)
	}
	if time.Now().After(pair.Leaf.NotAfter) {
		c.log.Warn("the TLS certificate has expired", "file", c.cert, "since", pair.Leaf.NotAfter)
	}
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.now, c.changed, c.next = &pair, info.ModTime(), time.Now().Add(certLook)
	}, nil
}

func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	now, changed, due := c.now, c.changed, time.Now().After(c.next)
	if due {
		c.next = time.Now().Add(certLook)
	}
	c.mu.Unlock()
	if !due {
		return now, nil
	}
	info, err := os.Stat(c.cert)
	if err == nil && info.ModTime().Equal(changed) {
		return now, nil
	}
	if err == nil {
		err = c.load()
	}
	if err != nil {
		c.log.Error("the TLS certificate stays as it was", "err", err)
		return now, nil
	}
	c.log.Info("the TLS certificate was read again", "file", c.cert)
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now, nil
}

// tlsConfig is nil without TLS; challenges answers ACME's HTTP challenges if they are wanted.
func (r *registry) tlsConfig() (conf *tls.Config, challenges http.Handler, err error) {
	t := r.conf.TLS
	switch {
	case t.Cert != "":
		r.certs = &certificate{cert: t.Cert, key: t.Key, log: r.log}
		if err := r.certs.load(); err != nil {
			return nil, nil, err
		}
		return &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: r.certs.get}, nil, nil
	case t.ACME == nil:
		return nil, nil, nil
	}
	m := &autocert.Manager{
		Prompt: autocert.AcceptTOS, Cache: autocert.DirCache(filepath.Join(r.conf.Root, "acme")), HostPolicy: autocert.HostWhitelist(t.ACME.Domains...), Email: t.ACME.Email,
	}
	client := &acme.Client{DirectoryURL: t.ACME.Directory, UserAgent: "corten/" + r.std.Version}
	if t.ACME.Directory == "" {
		client.DirectoryURL = acme.LetsEncryptURL
	}
	if t.ACME.CA != "" {
		roots, err := certPool(t.ACME.CA)
		if err != nil {
			return nil, nil, fmt.Errorf("tls.acme.ca: %w", err)
		}
		client.HTTPClient = &http.Client{Timeout: time.Minute, Transport: &http.Transport{Proxy: http.ProxyFromEnvironment, TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}}}
	}
	m.Client = client
	conf = m.TLSConfig()
	conf.MinVersion = tls.VersionTLS12
	if t.ACME.HTTPAddr != "" {
		challenges = m.HTTPHandler(nil)
	}
	return conf, challenges, nil
}

func certPool(path string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, errs.New(errs.Invalid, "%s holds no certificate", path)
	}
	return pool, nil
}
