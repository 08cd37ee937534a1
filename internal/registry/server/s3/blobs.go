package s3

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/registry/server"
)

const (
	copyLimit  = 5 << 30   // what the store copies in one request
	copyPart   = 512 << 20 // of what is larger
	copyAtOnce = 4
	rereads    = 4                // of a download that breaks off
	deleteTime = 20 * time.Second // for a deletion between its mark and its end
	markAge    = time.Minute      // after which a mark is that of a killed registry
)

func (d *Driver) blobKey(dgst digest.Digest) *string {
	hex := dgst.Encoded()
	return d.key("blobs", dgst.Algorithm().String()+"/"+hex[:2]+"/"+hex)
}

func (d *Driver) markKey(dgst digest.Digest) *string {
	return d.key("deleting", dgst.Algorithm().String()+"."+dgst.Encoded())
}

// stored is an object's time. Many stores count whole seconds: the next one is meant then, so that a blob never looks older than it is.
func stored(t *time.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	if t.Nanosecond() == 0 {
		return t.Add(time.Second - time.Nanosecond)
	}
	return *t
}

// Stat describes a blob.
func (d *Driver) Stat(ctx context.Context, dgst digest.Digest) (server.BlobInfo, error) {
	if err := server.CheckDigest(dgst); err != nil {
		return server.BlobInfo{}, err
	}
	out, err := d.api.HeadObject(ctx, &s3.HeadObjectInput{Bucket: &d.opts.Bucket, Key: d.blobKey(dgst)})
	if err != nil {
		return server.BlobInfo{}, fmt.Errorf("blob %s: %w", dgst, reason(err))
	}
	return server.BlobInfo{Digest: dgst, Size: aws.ToInt64(out.ContentLength), Stored: stored(out.LastModified)}, nil
}

// Open reads a part of a blob. A connection that breaks is taken up where it broke.
func (d *Driver) Open(ctx context.Context, dgst digest.Digest, offset, length int64) (io.ReadCloser, error) {
	if err := server.CheckDigest(dgst); err != nil {
		return nil, err
	}
	r := &download{d: d, ctx: ctx, dgst: dgst, offset: offset, left: length, tries: rereads}
	if length == 0 || offset == 0 && length < 0 {
		// A range of nothing cannot be asked for, neither can all of an empty object; and a blob that is not there must be told now.
		info, err := d.Stat(ctx, dgst)
		if err != nil {
			return nil, err
		}
		if length == 0 || info.Size == 0 {
			return io.NopCloser(strings.NewReader("")), nil
		}
		r.left = info.Size
	}
	if err := r.open(); err != nil {
		return nil, err
	}
	return r, nil
}

// download is a blob on its way out. ctx is the request's, whose life it shares.
type download struct {
	d      *Driver
	ctx    context.Context
	dgst   digest.Digest
	body   io.ReadCloser
	offset int64
	left   int64 // negative: all the rest
	tries  int
}

func (r *download) open() error {
	want := "bytes=" + strconv.FormatInt(r.offset, 10) + "-"
	if r.left > 0 {
		want += strconv.FormatInt(r.offset+r.left-1, 10)
	}
	out, err := r.d.api.GetObject(r.ctx, &s3.GetObjectInput{Bucket: &r.d.opts.Bucket, Key: r.d.blobKey(r.dgst), Range: &want})
	if err != nil {
		return fmt.Errorf("blob %s: %w", r.dgst, reason(err))
	}
	r.body = out.Body
	if r.left < 0 {
		r.left = aws.ToInt64(out.ContentLength)
	}
	return nil
}

func (r *download) Read(p []byte) (int, error) {
	if r.left == 0 {
		return 0, io.EOF
	}
	n, err := r.body.Read(p[:min(int64(len(p)), r.left)])
	r.offset += int64(n)
	r.left -= int64(n)
	if err == nil || r.left == 0 {
		return n, nil
	}
	if r.tries--; r.tries < 0 || r.ctx.Err() != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return n, errs.New(errs.Unavailable, "blob %s breaks off: %w", r.dgst, err)
	}
	r.d.log.Debug("a download broke off and goes on", "blob", r.dgst, "offset", r.offset, "err", err)
	_ = r.body.Close() // it is broken already
	return n, r.open()
}

func (r *download) Close() error { return r.body.Close() }

// Touch moves a blob's time by copying it onto itself.
func (d *Driver) Touch(ctx context.Context, dgst digest.Digest) (server.BlobInfo, error) {
	info, err := d.Stat(ctx, dgst)
	if err != nil {
		return info, err
	}
	key := d.blobKey(dgst)
	if info.Stored, err = d.copy(ctx, *key, *key, info.Size); err != nil {
		return info, fmt.Errorf("touch blob %s: %w", dgst, err)
	}
	if err := d.undeleted(ctx, dgst); err != nil {
		return info, err
	}
	return info, nil
}

// undeleted waits for the end of a deletion that may not have seen that the blob was stored or touched just now; errs.NotFound if the blob went.
func (d *Driver) undeleted(ctx context.Context, dgst digest.Digest) error {
	marked := false
	for {
		out, err := d.api.HeadObject(ctx, &s3.HeadObjectInput{Bucket: &d.opts.Bucket, Key: d.markKey(dgst)})
		if err = reason(err); isNotFound(err) {
			break
		} else if err != nil {
			return fmt.Errorf("blob %s: %w", dgst, err)
		}
		marked = true
		if time.Since(stored(out.LastModified)) > markAge {
			d.log.Warn("the mark of a deletion that nobody ended is removed", "blob", dgst)
			if err := d.remove(ctx, *d.markKey(dgst)); err != nil {
				return err
			}
			break
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if !marked {
		return nil
	}
	_, err := d.Stat(ctx, dgst)
	return err
}

// DeleteBlob removes a blob that was last stored before a time.
func (d *Driver) DeleteBlob(ctx context.Context, dgst digest.Digest, before time.Time) error {
	old := func(ctx context.Context) (bool, error) {
		info, err := d.Stat(ctx, dgst)
		if isNotFound(err) {
			return false, nil
		}
		if err == nil && !info.Stored.Before(before) {
			err = errs.New(errs.Conflict, "blob %s was stored or touched meanwhile", dgst)
		}
		return err == nil, err
	}
	if there, err := old(ctx); !there {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, deleteTime) // less than the mark's age: nobody takes it for a dead one's
	defer cancel()
	err := again(ctx, func() error {
		_, err := d.api.PutObject(ctx, &s3.PutObjectInput{Bucket: &d.opts.Bucket, Key: d.markKey(dgst), Body: strings.NewReader("")})
		return err
	})
	if err != nil {
		return fmt.Errorf("delete blob %s: %w", dgst, err)
	}
	there, err := old(ctx)
	if there {
		err = d.remove(ctx, *d.blobKey(dgst))
	}
	end, stop := context.WithTimeout(context.WithoutCancel(ctx), deleteTime)
	defer stop()
	return errors.Join(err, d.remove(end, *d.markKey(dgst)))
}

func (d *Driver) remove(ctx context.Context, key string) error {
	_, err := d.api.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &d.opts.Bucket, Key: &key})
	if err = reason(err); err != nil && !isNotFound(err) {
		return fmt.Errorf("delete %s: %w", key, err)
	}
	return nil
}

// WalkBlobs lists all blobs, by pages.
func (d *Driver) WalkBlobs(ctx context.Context, fn func(server.BlobInfo) error) error {
	prefix := *d.key("blobs", "")
	return d.walk(ctx, prefix, func(o types.Object) error {
		parts := strings.Split(strings.TrimPrefix(aws.ToString(o.Key), prefix), "/")
		if len(parts) != 3 {
			return nil
		}
		dgst := digest.Digest(parts[0] + ":" + parts[2])
		if server.CheckDigest(dgst) != nil {
			return nil
		}
		return fn(server.BlobInfo{Digest: dgst, Size: aws.ToInt64(o.Size), Stored: stored(o.LastModified)})
	})
}

func (d *Driver) walk(ctx context.Context, prefix string, fn func(types.Object) error) error {
	in := &s3.ListObjectsV2Input{Bucket: &d.opts.Bucket, Prefix: &prefix}
	for {
		out, err := d.api.ListObjectsV2(ctx, in)
		if err != nil {
			return fmt.Errorf("list %s: %w", prefix, reason(err))
		}
		for _, o := range out.Contents {
			if err := fn(o); err != nil {
				return err
			}
		}
		if !aws.ToBool(out.IsTruncated) {
			return nil
		}
		in.ContinuationToken = out.NextContinuationToken
	}
}

// copy makes an object of another, in the store itself and in one step, and tells its time.
func (d *Driver) copy(ctx context.Context, from, to string, size int64) (time.Time, error) {
	source := d.opts.Bucket + "/" + (&url.URL{Path: from}).EscapedPath()
	if size > copyLimit {
		return d.copyParts(ctx, source, to, size)
	}
	in := &s3.CopyObjectInput{Bucket: &d.opts.Bucket, Key: &to, CopySource: &source}
	if from == to {
		// A copy onto itself must change something, or it is refused.
		in.MetadataDirective = types.MetadataDirectiveReplace
		in.Metadata = map[string]string{"touched": strconv.FormatInt(time.Now().UnixNano(), 36)}
	}
	var out *s3.CopyObjectOutput
	err := again(ctx, func() (err error) {
		out, err = d.api.CopyObject(ctx, in)
		return err
	})
	if err != nil {
		return time.Time{}, err
	}
	if out.CopyObjectResult == nil || out.CopyObjectResult.LastModified == nil {
		return time.Now(), nil
	}
	return stored(out.CopyObjectResult.LastModified), nil
}

// copyParts copies what is too large for one request; the object comes into being at the end.
func (d *Driver) copyParts(ctx context.Context, source, to string, size int64) (_ time.Time, err error) {
	made, err := d.api.CreateMultipartUpload(ctx, &s3.CreateMultipartUploadInput{Bucket: &d.opts.Bucket, Key: &to})
	if err != nil {
		return time.Time{}, reason(err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.abortMultipart(context.WithoutCancel(ctx), to, aws.ToString(made.UploadId)))
		}
	}()
	count := int((size + copyPart - 1) / copyPart)
	parts, fails := make([]types.CompletedPart, count), make([]error, count)
	slots := make(chan struct{}, copyAtOnce)
	var wg sync.WaitGroup
	for i := range count {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			number, start := int32(i+1), int64(i)*copyPart
			span := fmt.Sprintf("bytes=%d-%d", start, min(start+copyPart, size)-1)
			out, err := d.api.UploadPartCopy(ctx, &s3.UploadPartCopyInput{
				Bucket: &d.opts.Bucket, Key: &to, UploadId: made.UploadId, PartNumber: &number, CopySource: &source, CopySourceRange: &span,
			})
			if err != nil {
				fails[i] = reason(err)
				return
			}
			parts[i] = types.CompletedPart{ETag: out.CopyPartResult.ETag, PartNumber: &number}
		})
	}
	wg.Wait()
	if err := errors.Join(fails...); err != nil {
		return time.Time{}, err
	}
	_, err = d.api.CompleteMultipartUpload(ctx, &s3.CompleteMultipartUploadInput{Bucket: &d.opts.Bucket, Key: &to, UploadId: made.UploadId, MultipartUpload: &types.CompletedMultipartUpload{Parts: parts}})
	return time.Now(), reason(err)
}

func (d *Driver) abortMultipart(ctx context.Context, key, id string) error {
	_, err := d.api.AbortMultipartUpload(ctx, &s3.AbortMultipartUploadInput{Bucket: &d.opts.Bucket, Key: &key, UploadId: &id})
	if err = reason(err); err != nil && !isNotFound(err) {
		return fmt.Errorf("abort parts of %s: %w", key, err)
	}
	return nil
}
