package endpoint

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"

	"corten.dev/corten/internal/errs"
)

// secure runs the TLS handshake on a tcp connection to host, the name that the certificate must have. The connection is closed when that fails.
func secure(ctx context.Context, nc net.Conn, f *tlsFiles, host string) (net.Conn, error) {
	cfg, err := f.config()
	if err != nil {
		nc.Close()
		return nil, err
	}
	cfg.ServerName = host
	tc := tls.Client(nc, cfg)
	if err := tc.HandshakeContext(ctx); err != nil {
		nc.Close()
		return nil, fmt.Errorf("tls handshake: %w", err)
	}
	return tc, nil
}

func (f *tlsFiles) config() (*tls.Config, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: f.skipVerify}
	read := func(pem []byte, path string) ([]byte, error) {
		if pem != nil || path == "" {
			return pem, nil
		}
		return os.ReadFile(path)
	}
	ca, err := read(f.caPEM, f.ca)
	if err != nil {
		return nil, fmt.Errorf("read CA certificate: %w", err)
	}
	if ca != nil {
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(ca) {
			return nil, errs.New(errs.Invalid, "no certificate found in %s", f.ca)
		}
	}
	cert, err := read(f.certPEM, f.cert)
	if err != nil {
		return nil, fmt.Errorf("read client certificate: %w", err)
	}
	key, err := read(f.keyPEM, f.key)
	if err != nil {
		return nil, fmt.Errorf("read client key: %w", err)
	}
	if (cert == nil) != (key == nil) {
		return nil, errs.New(errs.Invalid, "a client certificate and its key go together: only one of them is there")
	}
	if cert != nil {
		pair, err := tls.X509KeyPair(cert, key)
		if err != nil {
			return nil, fmt.Errorf("client certificate: %w", err)
		}
		cfg.Certificates = []tls.Certificate{pair}
	}
	return cfg, nil
}
