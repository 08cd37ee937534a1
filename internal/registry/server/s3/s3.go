// Package s3 keeps a registry's bytes in a bucket of Amazon S3, or of anything that speaks its protocol.
//
// It owns what lies below its prefix in the bucket, and a staging folder for parts on their way there (nothing in it outlives the process):
//
//	blobs/<algorithm>/<hh>/<hex>   whole and verified; the object's own time is when it was last stored or touched
//	values/<key>                   a small value
//	uploads/<id>                   how far an upload is: a line of JSON (state), then the bytes that do not fill a part yet
//	parts/<id>                     the multipart upload of a blob that is still coming, and for a moment the whole object, before it is copied to its name
//	deleting/<algorithm>.<hex>     somebody is about to delete that blob
//
// It promises: a blob has its name only once it is verified (a server-side copy puts it there in one step); what Append returned for is in the bucket; at
// most one part of each upload is on disk beside the one that is being sent, and none in memory; several registries may work on one bucket. It counts
// on a store that shows a write to the next read, as all of today do.
//
// S3 knows no "delete it unless it was touched meanwhile" that all makers have. Whoever deletes and whoever touches therefore look at each other:
//
//	delete:  write deleting/… ─▶ read the blob's time ─▶ too new? leave it : delete it ─▶ remove deleting/…
//	touch:   copy the blob onto itself (its time moves) ─▶ is there a deleting/…? wait for its end, then see whether the blob is still there
//
// One of the two always sees what the other did first.
package s3

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/registry/server"
	"corten.dev/corten/internal/task"
)

// Options describe a bucket.
type Options struct {
	Endpoint  string // URL; Amazon's of the region if empty
	Region    string
	Bucket    string
	Prefix    string
	PathStyle bool
	// KeyFile has two lines, the access key and the secret key; without it AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN count.
	KeyFile  string
	CA       string // certificates that sign the endpoint's own
	Staging  string // folder
	PartSize int64  // of multipart uploads, which grows with very large blobs; 0 is 8 MiB
	Logger   *slog.Logger

	backoff time.Duration // longest wait between two attempts; 0 is longestBackoff
}

const (
	defaultPart = 8 << 20
	attempts    = 5

	longestBackoff = 3 * time.Second
)

// Driver is a server.Driver on a bucket.
type Driver struct {
	api    *s3.Client
	http   *http.Transport
	opts   Options
	prefix string
	log    *slog.Logger
	open   server.Uploads
	keys   task.Keyed
	files  staging
}

var _ server.Driver = (*Driver)(nil)

// New looks whether the bucket is there.
func New(ctx context.Context, opts Options) (*Driver, error) {
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.PartSize == 0 {
		opts.PartSize = defaultPart
	}
	if opts.Region == "" {
		opts.Region = "us-east-1" // what other makers' stores expect in signatures
	}
	d := &Driver{opts: opts, log: opts.Logger, prefix: strings.Trim(opts.Prefix, "/")}
	if d.prefix != "" {
		d.prefix += "/"
	}
	if err := os.MkdirAll(opts.Staging, 0o700); err != nil {
		return nil, fmt.Errorf("staging folder: %w", err)
	}
	d.files.dir = opts.Staging
	keys, err := keyPair(opts.KeyFile)
	if err != nil {
		return nil, err
	}
	if err := d.connect(keys); err != nil {
		return nil, err
	}
	if _, err := d.api.HeadBucket(ctx, &s3.HeadBucketInput{Bucket: &opts.Bucket}); err != nil {
		return nil, fmt.Errorf("bucket %s: %w", opts.Bucket, reason(err))
	}
	return d, nil
}

func (d *Driver) connect(keys aws.CredentialsProvider) error {
	d.http = &http.Transport{
		Proxy: http.ProxyFromEnvironment, MaxIdleConnsPerHost: 64, IdleConnTimeout: 90 * time.Second, TLSHandshakeTimeout: 10 * time.Second,
		ResponseHeaderTimeout: 2 * time.Minute, ExpectContinueTimeout: time.Second, TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12},
	}
	if d.opts.CA != "" {
		pem, err := os.ReadFile(d.opts.CA)
		if err != nil {
			return fmt.Errorf("certificates of the store: %w", err)
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(pem) {
			return errs.New(errs.Invalid, "%s holds no certificate", d.opts.CA)
		}
		d.http.TLSClientConfig.RootCAs = pool
	}
	conf := s3.Options{
		Region: d.opts.Region, Credentials: aws.NewCredentialsCache(keys), UsePathStyle: d.opts.PathStyle, HTTPClient: &http.Client{Transport: d.http},
		Retryer: retry.NewStandard(func(o *retry.StandardOptions) {
			o.MaxAttempts, o.MaxBackoff = attempts, longestBackoff
			if d.opts.backoff > 0 {
				o.MaxBackoff = d.opts.backoff
			}
		}),
		// Checksums beyond the signature are Amazon's own; others' stores stumble over them, and blobs have a digest anyway.
		RequestChecksumCalculation: aws.RequestChecksumCalculationWhenRequired, ResponseChecksumValidation: aws.ResponseChecksumValidationWhenRequired,
	}
	if d.opts.Endpoint != "" {
		conf.BaseEndpoint = aws.String(d.opts.Endpoint)
	}
	d.api = s3.New(conf)
	return nil
}

// keyPair reads the credentials; they are never in an error.
func keyPair(file string) (aws.CredentialsProvider, error) {
	if file == "" {
		id, secret := os.Getenv("AWS_ACCESS_KEY_ID"), os.Getenv("AWS_SECRET_ACCESS_KEY")
		if id == "" || secret == "" {
			return nil, errs.New(errs.Invalid, "the credentials of the bucket are missing: give a credentials-file, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
		}
		return credentials.NewStaticCredentialsProvider(id, secret, os.Getenv("AWS_SESSION_TOKEN")), nil
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("credentials of the bucket: %w", err)
	}
	words := strings.Fields(string(text))
	if len(words) != 2 {
		return nil, errs.New(errs.Invalid, "%s must have two lines, the access key and the secret key", file)
	}
	return credentials.NewStaticCredentialsProvider(words[0], words[1], ""), nil
}

// Close lets go of connections and staging files.
func (d *Driver) Close() error {
	d.http.CloseIdleConnections()
	return d.files.close()
}

func (d *Driver) key(kind, name string) *string { return aws.String(d.prefix + kind + "/" + name) }

// reason is what the store said, without the library's words around it, and of our kinds.
func reason(err error) error {
	if err == nil {
		return nil
	}
	var api smithy.APIError
	var resp *awshttp.ResponseError
	status := 0
	if errors.As(err, &resp) {
		status = resp.HTTPStatusCode()
	}
	code := ""
	if errors.As(err, &api) {
		code = api.ErrorCode()
	}
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case status == http.StatusNotFound || code == "ObjectParentIsFile":
		return errs.New(errs.NotFound, "not found")
	case status == http.StatusPreconditionFailed || status == http.StatusConflict:
		return errs.New(errs.Conflict, "changed meanwhile")
	case api != nil && api.ErrorMessage() != "":
		return errs.New(errs.Unavailable, "store answers %s: %s", code, api.ErrorMessage())
	case status != 0:
		return errs.New(errs.Unavailable, "store answers %d %s", status, http.StatusText(status))
	}
	return errs.New(errs.Unavailable, "store does not answer: %w", err)
}

func isNotFound(err error) bool { return errors.Is(err, errs.NotFound) }

// unsupported tells that a store does not know a condition.
func unsupported(err error) bool {
	var resp *awshttp.ResponseError
	return errors.As(err, &resp) && resp.HTTPStatusCode() == http.StatusNotImplemented
}

// again repeats a change without conditions for which the store answers that another is under way (409): it comes after that one, which is as good.
func again(ctx context.Context, change func() error) error {
	for wait := 20 * time.Millisecond; ; wait *= 2 {
		err := reason(change())
		if !errors.Is(err, errs.Conflict) || wait > time.Second {
			return err
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// staging lends files without names, so that nothing is left of a killed process.
type staging struct {
	dir  string
	mu   sync.Mutex // guards free
	free []*os.File
}

const keepFiles = 16

func (s *staging) lend() (*os.File, error) {
	s.mu.Lock()
	if n := len(s.free); n > 0 {
		f := s.free[n-1]
		s.free = s.free[:n-1]
		s.mu.Unlock()
		return f, nil
	}
	s.mu.Unlock()
	f, err := os.CreateTemp(s.dir, "part-*")
	if err != nil {
		return nil, fmt.Errorf("staging file: %w", err)
	}
	if err := os.Remove(f.Name()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, errors.Join(fmt.Errorf("staging file: %w", err), f.Close())
	}
	return f, nil
}

func (s *staging) back(f *os.File) error {
	if f == nil {
		return nil
	}
	if err := f.Truncate(0); err != nil {
		return errors.Join(err, f.Close())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.free) >= keepFiles {
		return f.Close()
	}
	s.free = append(s.free, f)
	return nil
}

func (s *staging) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []error
	for _, f := range s.free {
		all = append(all, f.Close())
	}
	s.free = nil
	return errors.Join(all...)
}
