package logs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/logs/logfile"
)

// Compressing is when finished files are looked for at most this often.
const compressEvery = time.Second

const asideExt = ".tmp"

// Compress replaces finished files of the log in dir by compressed ones, until done closes and a last time then, or ctx ends. The file that grows stays as it is, and indexes do too.
//
//	00000007.log ─▶ 00000007.log.zst.tmp ─▶ 00000007.log.zst, and the .log goes
//
// Readers take the .log while there is one. The writer drops both by the bound; when it does so in the middle of this, the new one goes here.
func Compress(ctx context.Context, dir string, w *Watches, done <-chan struct{}) error {
	changed, remove := w.Add(dir)
	defer remove()
	for {
		over := false
		select {
		case <-done:
			over = true
		default:
		}
		if err := compressFinished(dir); err != nil {
			return fmt.Errorf("compress log %s: %w", dir, err)
		}
		if over {
			return nil
		}
		select { // what is written goes on to be written: no use in looking each time
		case <-ctx.Done():
			return ctx.Err()
		case <-done:
			continue
		case <-time.After(compressEvery):
		}
		var look <-chan time.Time
		if changed == nil {
			look = time.After(pollEvery)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-done:
		case <-changed:
		case <-look:
		}
	}
}

func compressFinished(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var plain []int64
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), asideExt) { // of an engine that was killed
			if err := os.Remove(filepath.Join(dir, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		if n := logfile.Number(e.Name(), logfile.Plain); n > 0 {
			plain = append(plain, n)
		}
	}
	for _, n := range plain[:max(len(plain)-1, 0)] { // sorted by name, and so by number
		if err := compressOne(filepath.Join(dir, logfile.Name(n, logfile.Plain)), filepath.Join(dir, logfile.Name(n, logfile.Compressed))); err != nil {
			return err
		}
	}
	return nil
}

func compressOne(from, to string) (err error) {
	in, err := os.Open(from)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // dropped meanwhile
	}
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to+asideExt, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	zip, err := zstd.NewWriter(out, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
	if err == nil {
		_, err = io.Copy(zip, in)
		err = errors.Join(err, zip.Close())
	}
	if err == nil {
		err = out.Sync() // before the other one goes
	}
	if err = errors.Join(err, out.Close()); err == nil {
		err = os.Rename(to+asideExt, to)
	}
	if err != nil {
		return errors.Join(err, os.Remove(to+asideExt))
	}
	if err := os.Remove(from); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Remove(to); !errors.Is(err, fs.ErrNotExist) { // the bound was reached while we worked
		return err
	}
	return nil
}

// openPlain opens file number of the log as it was written; a compressed one is put into a file without a name.
func openPlain(dir string, number int64) (*os.File, error) {
	f, err := os.Open(filepath.Join(dir, logfile.Name(number, logfile.Plain)))
	if !errors.Is(err, fs.ErrNotExist) {
		return f, err
	}
	in, err := os.Open(filepath.Join(dir, logfile.Name(number, logfile.Compressed)))
	if err != nil {
		return nil, err
	}
	defer in.Close()
	unzip, err := zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(64<<20))
	if err != nil {
		return nil, err
	}
	defer unzip.Close()
	out, err := nameless(dir)
	if err != nil {
		return nil, err
	}
	if _, err := io.Copy(out, unzip); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", in.Name(), err), out.Close())
	}
	return out, nil
}

// nameless makes a file that is gone when it is closed.
func nameless(dir string) (*os.File, error) {
	if fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600); err == nil {
		return os.NewFile(uintptr(fd), dir+" (uncompressed)"), nil
	}
	f, err := os.CreateTemp(dir, "reading-*"+asideExt) // file systems without such files
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// Trim removes the files of the log in dir below number: everybody who reads it is beyond them. The one that grows stays.
func Trim(dir string, number int64) error {
	all, err := (&cursor{dir: dir}).numbers()
	if err != nil || len(all) == 0 {
		return err
	}
	for _, n := range all[:len(all)-1] {
		if n >= number {
			break
		}
		for _, ext := range []string{logfile.Plain, logfile.Compressed, logfile.Index} {
			if err := os.Remove(filepath.Join(dir, logfile.Name(n, ext))); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}
