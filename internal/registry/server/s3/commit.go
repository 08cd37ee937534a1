package s3

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/registry/server"
)

// Commit verifies the bytes and names them.
func (u *upload) Commit(ctx context.Context, want digest.Digest) (server.BlobInfo, error) {
	info, err := u.commit(ctx, want)
	if errors.Is(err, errs.Invalid) {
		return info, errors.Join(err, u.Abort(ctx))
	}
	if err != nil {
		return info, fmt.Errorf("upload %s: %w", u.id, err)
	}
	return info, nil
}

func (u *upload) commit(ctx context.Context, want digest.Digest) (info server.BlobInfo, err error) {
	if err := server.CheckDigest(want); err != nil {
		return info, err
	}
	known := u.hash != nil && want.Algorithm() == u.kept.Algorithm
	if known {
		if got := digest.NewDigest(u.kept.Algorithm, u.hash); got != want {
			return info, errs.New(errs.Invalid, "upload %s is %s, not %s", u.id, got, want)
		}
	}
	info = server.BlobInfo{Digest: want, Size: u.size.Load()}
	if u.kept.Multipart == "" {
		if !known {
			if err := same(io.NewSectionReader(u.tail, 0, u.fill), want); err != nil {
				return info, err
			}
		}
		info.Stored, err = u.putWhole(ctx, want)
	} else {
		if err := u.complete(ctx); err != nil {
			return info, err
		}
		if !known {
			if err := u.readAgain(ctx, want); err != nil {
				return info, err
			}
		}
		info.Stored, err = u.d.copy(ctx, *u.partsKey(), *u.d.blobKey(want), info.Size)
	}
	if err != nil {
		return info, err
	}
	if err := u.d.undeleted(ctx, want); isNotFound(err) {
		// A deletion had seen the blob's former self, and took ours. What is uploaded is still here: once more; there is no mark now.
		if u.kept.Multipart == "" {
			info.Stored, err = u.putWhole(ctx, want)
		} else {
			info.Stored, err = u.d.copy(ctx, *u.partsKey(), *u.d.blobKey(want), info.Size)
		}
		if err != nil {
			return info, err
		}
	} else if err != nil {
		return info, err
	}
	if u.kept.Multipart != "" {
		if err := u.d.remove(ctx, *u.partsKey()); err != nil {
			return info, err
		}
	}
	if err := u.d.remove(ctx, *u.stateKey()); err != nil {
		return info, err
	}
	return info, u.end()
}

func (u *upload) putWhole(ctx context.Context, want digest.Digest) (time.Time, error) {
	err := again(ctx, func() error {
		_, err := u.d.api.PutObject(ctx, &s3.PutObjectInput{
			Bucket: &u.d.opts.Bucket, Key: u.d.blobKey(want), ContentLength: &u.fill, Body: io.NewSectionReader(u.tail, 0, u.fill),
		})
		return err
	})
	return time.Now(), err
}

func same(r io.Reader, want digest.Digest) error {
	got, err := want.Algorithm().FromReader(r)
	if err != nil {
		return err
	}
	if got != want {
		return errs.New(errs.Invalid, "upload is %s, not %s", got, want)
	}
	return nil
}

// complete makes one object of the parts. A registry that was killed right after it finds the object there, and no parts any more.
func (u *upload) complete(ctx context.Context) error {
	err := u.completeParts(ctx)
	if err == nil {
		return nil
	}
	head, herr := u.d.api.HeadObject(ctx, &s3.HeadObjectInput{Bucket: &u.d.opts.Bucket, Key: u.partsKey()})
	if herr == nil && aws.ToInt64(head.ContentLength) == u.size.Load() {
		return nil
	}
	return err
}

func (u *upload) completeParts(ctx context.Context) error {
	if u.fill > 0 {
		etag, err := u.put(ctx, &flight{file: u.tail, size: u.fill, index: len(u.kept.Parts) + 1})
		if err != nil {
			return err
		}
		u.kept.Parts = append(u.kept.Parts, part{etag, u.fill})
		u.fill = 0
	}
	done := &types.CompletedMultipartUpload{}
	for i, p := range u.kept.Parts {
		done.Parts = append(done.Parts, types.CompletedPart{ETag: aws.String(p.ETag), PartNumber: aws.Int32(int32(i + 1))})
	}
	_, err := u.d.api.CompleteMultipartUpload(ctx, &s3.CompleteMultipartUploadInput{Bucket: &u.d.opts.Bucket, Key: u.partsKey(), UploadId: &u.kept.Multipart, MultipartUpload: done})
	return reason(err)
}

func (u *upload) readAgain(ctx context.Context, want digest.Digest) error {
	out, err := u.d.api.GetObject(ctx, &s3.GetObjectInput{Bucket: &u.d.opts.Bucket, Key: u.partsKey()})
	if err != nil {
		return reason(err)
	}
	return errors.Join(same(out.Body, want), out.Body.Close())
}
