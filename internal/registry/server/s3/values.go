package s3

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/registry/server"
)

const maxValue = 16 << 20

// Get reads a value.
func (d *Driver) Get(ctx context.Context, key string) ([]byte, error) {
	data, _, err := d.get(ctx, key)
	return data, err
}

func (d *Driver) get(ctx context.Context, key string) (data []byte, etag *string, err error) {
	if err := server.CheckKey(key); err != nil {
		return nil, nil, err
	}
	out, err := d.api.GetObject(ctx, &s3.GetObjectInput{Bucket: &d.opts.Bucket, Key: d.key("values", key)})
	if err != nil {
		return nil, nil, fmt.Errorf("value %s: %w", key, reason(err))
	}
	data, err = io.ReadAll(io.LimitReader(out.Body, maxValue+1))
	if err := errors.Join(err, out.Body.Close()); err != nil {
		return nil, nil, errs.New(errs.Unavailable, "value %s: %w", key, err)
	}
	if len(data) > maxValue {
		return nil, nil, fmt.Errorf("value %s has more than %d bytes", key, maxValue)
	}
	return data, out.ETag, nil
}

// Put makes or replaces a value; an object comes into being whole.
func (d *Driver) Put(ctx context.Context, key string, value []byte) error {
	if err := server.CheckKey(key); err != nil {
		return err
	}
	unlock, err := d.keys.Lock(ctx, key)
	if err != nil {
		return err
	}
	defer unlock()
	err = again(ctx, func() error {
		_, err := d.api.PutObject(ctx, &s3.PutObjectInput{Bucket: &d.opts.Bucket, Key: d.key("values", key), Body: bytes.NewReader(value), ContentLength: aws.Int64(int64(len(value)))})
		return err
	})
	if err != nil {
		return fmt.Errorf("value %s: %w", key, err)
	}
	return nil
}

// Delete removes a value, if it is still what it was when old says so. Another registry that replaces it between our look and our deletion is noticed by
// the store, where it knows the condition (If-Match).
func (d *Driver) Delete(ctx context.Context, key string, old []byte) error {
	if err := server.CheckKey(key); err != nil {
		return err
	}
	unlock, err := d.keys.Lock(ctx, key)
	if err != nil {
		return err
	}
	defer unlock()
	in := &s3.DeleteObjectInput{Bucket: &d.opts.Bucket, Key: d.key("values", key)}
	if old != nil {
		have, etag, err := d.get(ctx, key)
		if isNotFound(err) {
			return nil
		}
		if err != nil {
			return err
		}
		if !bytes.Equal(have, old) {
			return errs.New(errs.Conflict, "value %s changed meanwhile", key)
		}
		in.IfMatch = etag
	}
	_, err = d.api.DeleteObject(ctx, in)
	if in.IfMatch != nil && unsupported(err) {
		in.IfMatch = nil
		_, err = d.api.DeleteObject(ctx, in)
	}
	if err = reason(err); err != nil && !isNotFound(err) {
		return fmt.Errorf("value %s: %w", key, err)
	}
	return nil
}

type entry struct {
	name string
	dir  bool
}

// List calls fn with the names below a key. The store sorts whole keys, in which a folder's name ends with a slash: "a-b/" comes before "a/", though "a" is
// the smaller name. So a name with a '-' or '.' waits until no folder can come that belongs before it.
func (d *Driver) List(ctx context.Context, key, after string, fn func(name string, dir bool) error) error {
	prefix := d.prefix + "values/"
	if key != "" {
		if err := server.CheckKey(key); err != nil {
			return err
		}
		prefix += key + "/"
	}
	in := &s3.ListObjectsV2Input{Bucket: &d.opts.Bucket, Prefix: &prefix, Delimiter: aws.String("/")}
	if after != "" {
		in.StartAfter = aws.String(prefix + after)
	}
	var waiting []entry
	send := func(reached string) error {
		slices.SortFunc(waiting, func(a, b entry) int { return strings.Compare(a.name, b.name) })
		for len(waiting) > 0 {
			if b := barrier(waiting[0].name); b != "" && reached != "" && reached < b {
				return nil
			}
			e := waiting[0]
			waiting = waiting[1:]
			if e.name <= after {
				continue
			}
			if err := fn(e.name, e.dir); err != nil {
				return err
			}
		}
		return nil
	}
	for {
		out, err := d.api.ListObjectsV2(ctx, in)
		if err != nil {
			return fmt.Errorf("list %s: %w", key, reason(err))
		}
		reached := ""
		for _, p := range out.CommonPrefixes {
			name := strings.TrimPrefix(aws.ToString(p.Prefix), prefix)
			reached = max(reached, name)
			waiting = append(waiting, entry{strings.TrimSuffix(name, "/"), true})
		}
		for _, o := range out.Contents {
			name := strings.TrimPrefix(aws.ToString(o.Key), prefix)
			reached = max(reached, name)
			if name != "" {
				waiting = append(waiting, entry{name, false})
			}
		}
		if !aws.ToBool(out.IsTruncated) {
			return send("")
		}
		if err := send(reached); err != nil {
			return err
		}
		in.ContinuationToken = out.NextContinuationToken
	}
}

// barrier is the last key of a folder that belongs before a name: the part before its first character that sorts before a slash. "" is none.
func barrier(name string) string {
	if i := strings.IndexAny(name, "-."); i > 0 {
		return name[:i] + "/"
	}
	return ""
}
