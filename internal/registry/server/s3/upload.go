package s3

import (
	"bytes"
	"context"
	_ "crypto/sha512" // for digests of these kinds
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/registry/server"
)

const (
	maxParts  = 10000
	growAfter = 1000 // parts, from which on they are larger: with 8 MiB, a blob may have 1.4 TB
	growTimes = 16
	sizeMeta  = "size"
	forgotten = 24 * time.Hour  // of parts whose upload has no state
	sendTime  = 5 * time.Minute // for one part, retries included
)

// state is how far an upload is: the first line of uploads/<id>. Behind it come the bytes after the last part.
type state struct {
	Multipart string           `json:"multipart,omitempty"` // the store's id
	Parts     []part           `json:"parts,omitempty"`
	Algorithm digest.Algorithm `json:"algorithm"`
	Hash      []byte           `json:"hash,omitempty"` // of Size bytes, as encoding.BinaryMarshaler gives it
	Size      int64            `json:"size"`
}

type part struct {
	ETag string `json:"etag"`
	Size int64  `json:"size"`
}

func (s *state) inParts() (n int64) {
	for _, p := range s.Parts {
		n += p.Size
	}
	return n
}

// upload is a blob that is coming in. All but Size belongs to whoever has it open.
//
//	Append ─▶ tail (a staging file) ──full──▶ sent as a part while the next tail fills ──▶ the state says so
//	                                └──end───▶ the state, with the tail behind it
type upload struct {
	d     *Driver
	id    string
	size  atomic.Int64
	kept  state   // what is in the store
	etag  *string // of the state: another registry that goes on with this upload is noticed
	tail  *os.File
	fill  int64 // of tail
	hash  hash.Hash
	ended bool
}

// Upload opens an upload, or makes one.
func (d *Driver) Upload(ctx context.Context, id string, opts server.UploadOptions) (_ server.Upload, err error) {
	alg, err := d.open.Claim(id, opts)
	if err != nil {
		return nil, err
	}
	u := &upload{d: d, id: id}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("upload %s: %w", id, err), u.end())
		}
	}()
	if u.tail, err = d.files.lend(); err != nil {
		return nil, err
	}
	if opts.Create {
		u.kept.Algorithm, u.hash = alg, alg.Hash()
		err = u.save(ctx, nil, true)
	} else {
		err = u.load(ctx)
	}
	if err != nil {
		return nil, err
	}
	return u, nil
}

func (u *upload) stateKey() *string { return u.d.key("uploads", u.id) }
func (u *upload) partsKey() *string { return u.d.key("parts", u.id) }

// load reads the state, and the bytes after the last part into the tail.
func (u *upload) load(ctx context.Context) error {
	out, err := u.d.api.GetObject(ctx, &s3.GetObjectInput{Bucket: &u.d.opts.Bucket, Key: u.stateKey()})
	if err != nil {
		return reason(err)
	}
	defer out.Body.Close()
	dec := json.NewDecoder(out.Body)
	if err := dec.Decode(&u.kept); err != nil || !u.kept.Algorithm.Available() {
		return fmt.Errorf("its state is damaged: %w", errors.Join(err, errs.Unavailable))
	}
	rest := io.MultiReader(dec.Buffered(), out.Body)
	var newline [1]byte
	if _, err := io.ReadFull(rest, newline[:]); err != nil {
		return errs.New(errs.Unavailable, "its state is cut short: %w", err)
	}
	if u.fill, err = io.Copy(io.NewOffsetWriter(u.tail, 0), rest); err != nil {
		return errs.New(errs.Unavailable, "what is there cannot be read: %w", err)
	}
	if u.fill != u.kept.Size-u.kept.inParts() {
		return errs.New(errs.Unavailable, "its state is cut short")
	}
	u.etag = out.ETag
	u.size.Store(u.kept.Size)
	u.hash = unmarshal(u.kept.Algorithm, u.kept.Hash)
	return nil
}

// unmarshal is the hash that was saved; nil if it cannot be gone on with: then the bytes are read again at the end.
func unmarshal(alg digest.Algorithm, saved []byte) hash.Hash {
	h := alg.Hash()
	if len(saved) == 0 {
		return h
	}
	if m, ok := h.(encoding.BinaryUnmarshaler); !ok || m.UnmarshalBinary(saved) != nil {
		return nil
	}
	return h
}

func marshal(h hash.Hash) []byte {
	m, ok := h.(encoding.BinaryMarshaler)
	if !ok || h == nil {
		return nil
	}
	saved, err := m.MarshalBinary()
	if err != nil {
		return nil
	}
	return saved
}

// save writes the state, with the bytes of the tail behind it if it is given.
func (u *upload) save(ctx context.Context, tail *os.File, fresh bool) error {
	head, err := json.Marshal(u.kept)
	if err != nil {
		return err
	}
	head = append(head, '\n')
	var body io.ReadSeeker = bytes.NewReader(head)
	size := int64(len(head))
	if n := u.kept.Size - u.kept.inParts(); tail != nil && n > 0 {
		body, size = &joined{head: head, file: tail, size: size + n}, size+n
	}
	in := &s3.PutObjectInput{
		Bucket: &u.d.opts.Bucket, Key: u.stateKey(), Body: body, ContentLength: &size, IfMatch: u.etag,
		Metadata: map[string]string{sizeMeta: strconv.FormatInt(u.kept.Size, 10)},
	}
	if fresh {
		in.IfNoneMatch = aws.String("*")
	}
	out, err := u.d.api.PutObject(ctx, in)
	if err != nil && unsupported(err) { // a store without conditions: this process' own claim has to do
		in.IfMatch, in.IfNoneMatch = nil, nil
		if _, err = body.Seek(0, io.SeekStart); err == nil {
			out, err = u.d.api.PutObject(ctx, in)
		}
	}
	if err != nil {
		return reason(err)
	}
	u.etag = out.ETag
	return nil
}

// joined is a line of JSON and the beginning of a file, as one body that can be sent again.
type joined struct {
	head []byte
	file *os.File
	size int64
	at   int64
}

func (j *joined) Read(p []byte) (int, error) {
	if j.at >= j.size {
		return 0, io.EOF
	}
	if n := int64(len(j.head)); j.at < n {
		c := copy(p, j.head[j.at:])
		j.at += int64(c)
		return c, nil
	}
	p = p[:min(int64(len(p)), j.size-j.at)]
	n, err := j.file.ReadAt(p, j.at-int64(len(j.head)))
	j.at += int64(n)
	if n > 0 {
		err = nil
	}
	return n, err
}

func (j *joined) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += j.at
	case io.SeekEnd:
		offset += j.size
	}
	if offset < 0 {
		return 0, errors.New("seek before the beginning")
	}
	j.at = offset
	return offset, nil
}

// Size is how much is there.
func (u *upload) Size() int64 { return u.size.Load() }

func (u *upload) partSize(number int) int64 {
	if number > growAfter {
		return u.d.opts.PartSize * growTimes
	}
	return u.d.opts.PartSize
}

// flight is a part on its way.
type flight struct {
	file  *os.File
	size  int64
	hash  []byte // after it
	done  chan struct{}
	etag  string
	err   error
	index int
}

// Append takes all of r. After an error what the store has counts, and Size says how much that is.
func (u *upload) Append(ctx context.Context, r io.Reader) (err error) {
	if u.ended {
		return errs.New(errs.Conflict, "upload %s has ended", u.id)
	}
	before := u.size.Load()
	var out *flight
	readErr := u.take(ctx, r, &out)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), sendTime)
	defer cancel()
	err = u.land(ctx, out)
	if err == nil && u.size.Load() != before {
		u.kept.Size, u.kept.Hash = u.size.Load(), marshal(u.hash)
		err = u.save(ctx, u.tail, false)
	}
	if err != nil {
		err = errors.Join(err, u.rewind(ctx))
	}
	if err = errors.Join(readErr, err); err != nil {
		return fmt.Errorf("upload %s: %w", u.id, err)
	}
	return nil
}

// take reads r into the tail, and sends the tail each time it is full.
func (u *upload) take(ctx context.Context, r io.Reader, out **flight) error {
	buf := make([]byte, 128<<10)
	for {
		room := u.partSize(len(u.kept.Parts)+2) - u.fill // one may be on its way
		if room <= 0 {
			if err := u.send(ctx, out); err != nil {
				return err
			}
			continue
		}
		n, rerr := r.Read(buf[:min(int64(len(buf)), room)])
		if n > 0 {
			if _, err := u.tail.WriteAt(buf[:n], u.fill); err != nil {
				return fmt.Errorf("staging file: %w", err)
			}
			if u.hash != nil {
				u.hash.Write(buf[:n])
			}
			u.fill += int64(n)
			u.size.Add(int64(n))
		}
		if rerr == io.EOF {
			return nil
		}
		if rerr == nil {
			rerr = ctx.Err()
		}
		if rerr != nil {
			return rerr
		}
	}
}

// send starts sending the full tail, once the part before it has landed, and takes another file for the next one.
func (u *upload) send(ctx context.Context, out **flight) error {
	if err := u.land(ctx, *out); err != nil {
		*out = nil
		return err
	}
	*out = nil
	if u.kept.Multipart == "" {
		made, err := u.d.api.CreateMultipartUpload(ctx, &s3.CreateMultipartUploadInput{Bucket: &u.d.opts.Bucket, Key: u.partsKey()})
		if err != nil {
			return reason(err)
		}
		u.kept.Multipart = aws.ToString(made.UploadId)
	}
	if len(u.kept.Parts) >= maxParts {
		return errs.New(errs.Invalid, "it has more than %d parts: give a larger part-size", maxParts)
	}
	next, err := u.d.files.lend()
	if err != nil {
		return err
	}
	f := &flight{file: u.tail, size: u.fill, hash: marshal(u.hash), done: make(chan struct{}), index: len(u.kept.Parts) + 1}
	u.tail, u.fill = next, 0
	go func() {
		defer close(f.done)
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), sendTime) // what came is kept also when the client is gone
		defer cancel()
		f.etag, f.err = u.put(end, f)
	}()
	*out = f
	return nil
}

func (u *upload) put(ctx context.Context, f *flight) (string, error) {
	number := int32(f.index)
	out, err := u.d.api.UploadPart(ctx, &s3.UploadPartInput{
		Bucket: &u.d.opts.Bucket, Key: u.partsKey(), UploadId: &u.kept.Multipart, PartNumber: &number, ContentLength: &f.size, Body: io.NewSectionReader(f.file, 0, f.size),
	})
	if err != nil {
		return "", fmt.Errorf("part %d: %w", number, reason(err))
	}
	return aws.ToString(out.ETag), nil
}

// land waits for a part and notes it in the state, so that a registry killed now goes on from here.
func (u *upload) land(ctx context.Context, f *flight) error {
	if f == nil {
		return nil
	}
	<-f.done
	err := errors.Join(f.err, u.d.files.back(f.file))
	if err != nil {
		return err
	}
	u.kept.Parts = append(u.kept.Parts, part{f.etag, f.size})
	u.kept.Size, u.kept.Hash = u.kept.inParts(), f.hash
	return u.save(ctx, nil, false)
}

// rewind goes back to what the store has, after an error.
func (u *upload) rewind(ctx context.Context) error {
	fresh := &upload{d: u.d, id: u.id, tail: u.tail}
	if err := u.tail.Truncate(0); err != nil {
		return err
	}
	if err := fresh.load(ctx); err != nil {
		return err
	}
	u.kept, u.etag, u.fill, u.hash = fresh.kept, fresh.etag, fresh.fill, fresh.hash
	u.size.Store(fresh.kept.Size)
	return nil
}

// end lets go of everything that belongs to this process.
func (u *upload) end() error {
	if u.ended {
		return nil
	}
	u.ended = true
	u.d.open.Release(u.id)
	return u.d.files.back(u.tail)
}

// Close keeps the upload for later: Append has saved it.
func (u *upload) Close() error { return u.end() }

// Abort throws the upload away; the state goes last, so that what is left of a killed registry is found again.
func (u *upload) Abort(ctx context.Context) error {
	if u.ended {
		return nil
	}
	var all []error
	if u.kept.Multipart != "" {
		all = append(all, u.d.abortMultipart(ctx, *u.partsKey(), u.kept.Multipart), u.d.remove(ctx, *u.partsKey()))
	}
	if err := errors.Join(all...); err != nil {
		return errors.Join(fmt.Errorf("upload %s: %w", u.id, err), u.end())
	}
	if err := u.d.remove(ctx, *u.stateKey()); err != nil {
		return errors.Join(err, u.end())
	}
	return u.end()
}

// WalkUploads lists the uploads. On the way it lets go of parts that no upload knows of: a registry was killed between the first of them and the state.
func (d *Driver) WalkUploads(ctx context.Context, fn func(server.UploadInfo) error) error {
	prefix := *d.key("uploads", "")
	err := d.walk(ctx, prefix, func(o types.Object) error {
		id := strings.TrimPrefix(aws.ToString(o.Key), prefix)
		if !server.ValidUpload(id) {
			return nil
		}
		head, err := d.api.HeadObject(ctx, &s3.HeadObjectInput{Bucket: &d.opts.Bucket, Key: o.Key})
		if err = reason(err); isNotFound(err) {
			return nil // finished meanwhile
		} else if err != nil {
			return fmt.Errorf("upload %s: %w", id, err)
		}
		size, err := strconv.ParseInt(head.Metadata[sizeMeta], 10, 64)
		if err != nil {
			size = 0 // a store that does not keep metadata: the figure is for reports only
		}
		return fn(server.UploadInfo{ID: id, Size: size, Changed: stored(head.LastModified)})
	})
	if err != nil {
		return err
	}
	return d.sweep(ctx)
}

func (d *Driver) sweep(ctx context.Context) error {
	prefix := *d.key("parts", "")
	in := &s3.ListMultipartUploadsInput{Bucket: &d.opts.Bucket, Prefix: &prefix}
	for {
		out, err := d.api.ListMultipartUploads(ctx, in)
		if err != nil {
			return fmt.Errorf("list uploads: %w", reason(err))
		}
		for _, m := range out.Uploads {
			id := strings.TrimPrefix(aws.ToString(m.Key), prefix)
			if m.Initiated == nil || time.Since(*m.Initiated) < forgotten || !server.ValidUpload(id) {
				continue
			}
			_, err := d.api.HeadObject(ctx, &s3.HeadObjectInput{Bucket: &d.opts.Bucket, Key: d.key("uploads", id)})
			if !isNotFound(reason(err)) {
				continue
			}
			if err := d.abortMultipart(ctx, aws.ToString(m.Key), aws.ToString(m.UploadId)); err != nil {
				return err
			}
		}
		if !aws.ToBool(out.IsTruncated) {
			return nil
		}
		in.KeyMarker, in.UploadIdMarker = out.NextKeyMarker, out.NextUploadIdMarker
	}
}
