package export

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"time"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/snapshot"
)

// clamp makes the layers of this build again with no file newer than SOURCE_DATE_EPOCH (rewrite-timestamp). Those of the base image stay what they are. The new layers stand in the
// store like any others; those that no image comes of go when the export is over.
func (x *exporting) clamp(ctx context.Context, t *target) error {
	if t.epoch == nil {
		if x.job.Progress != nil {
			x.job.Progress.Warn(build.Warning{Level: 1, Short: []byte("rewrite-timestamp has no effect: there is no SOURCE_DATE_EPOCH")})
		}
		return nil
	}
	var parent snapshot.ChainID
	layers := append([]snapshot.Layer{}, t.layers...)
	for i, l := range layers {
		if i >= t.base {
			r := x.stream(ctx, func(ctx context.Context, w io.Writer) error { return x.clamped(ctx, l.Chain, *t.epoch, w) })
			redone, err := x.Trees.Apply(ctx, parent, "", r)
			if err = errors.Join(err, r.Close()); err != nil {
				return err
			}
			layers[i] = redone
			if x.again == nil {
				x.again = map[snapshot.ChainID]snapshot.ChainID{}
			}
			x.again[redone.Chain] = l.Chain // as old as the one it was made of
		}
		parent = layers[i].Chain
	}
	t.layers, t.chain = layers, parent
	return nil
}

func (x *exporting) clamped(ctx context.Context, chain snapshot.ChainID, epoch time.Time, w io.Writer) error {
	r := x.stream(ctx, func(ctx context.Context, w io.Writer) error { return x.Trees.LayerTar(ctx, chain, w) })
	tw := tar.NewWriter(w)
	err := retime(r, tw, func(tm time.Time) time.Time {
		if tm.After(epoch) {
			return epoch
		}
		return tm
	})
	return errors.Join(err, tw.Close(), r.Close())
}

// retime copies the entries of an archive with other times. Everything else stays.
func retime(r io.Reader, tw *tar.Writer, when func(time.Time) time.Time) error {
	tr := tar.NewReader(r)
	buf := make([]byte, 256<<10)
	for {
		hdr, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		hdr.ModTime, hdr.AccessTime, hdr.ChangeTime, hdr.Format = when(hdr.ModTime), time.Time{}, time.Time{}, tar.FormatPAX
		if err := tw.WriteHeader(hdr); err != nil {
			return err
		}
		if hdr.Typeflag != tar.TypeReg {
			continue
		}
		if _, err := io.CopyBuffer(struct{ io.Writer }{tw}, struct{ io.Reader }{tr}, buf); err != nil {
			return err
		}
	}
	_, err := io.CopyBuffer(io.Discard, r, buf) // the padding behind the end, so that the writer is not cut off
	return err
}
