// Package record keeps durable named records: one folder for a noun, one JSON file for a record.
//
// It owns the folder that it was opened on. It promises: a reader sees a record as one Put left it, never half of one; a durable Put or Delete that
// returned nil outlives a crash of the machine; a file that cannot be read is set aside under another name and said, and never stands in the way of the others.
//
//	<dir>/<name>.json          the record
//	<dir>/.<name>.<n>.tmp      a write under way; dropped by Open when found
//	<dir>/<name>.json.broken   what could not be read at start, kept for a person to look at
//
// How a record is written:
//
//	write aside ─▶ fdatasync ─▶ rename over the old one ─▶ fsync of the folder
//	               (durable)                               (durable; shared by all who wait for it)
//
// What a crash of the machine resets anyway (running, pid, address) is put without the flushes: after a crash such a record may be an older one, or broken.
//
// Figures (2-core machine, ext4): a durable Put takes 0.55 ms alone and 0.22 ms each when sixteen put at once; one without flush 0.11 ms.
package record

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"corten.dev/corten/internal/errs"
	"golang.org/x/sys/unix"
)

const (
	suffix       = ".json"
	tmpSuffix    = ".tmp"
	brokenSuffix = ".broken"
	maxName      = 200 // leaves room for the prefix and suffixes in the 255 bytes of a file name
)

// Checked is what the type of a record can be that may be read and is no good all the same: then it is as one that cannot be read. It is asked with the name under which it was found.
type Checked interface {
	Check(name string) error
}

// Dir is an open folder of records of one type. Its methods may be called by several goroutines. Who puts one record from several goroutines at once orders
// them himself: the last rename stays.
type Dir[T any] struct {
	log    *slog.Logger
	root   *os.Root
	dir    *os.File // the folder itself, for its fsync
	serial atomic.Uint64
	flush  flusher
}

// Open opens a folder, makes it if it is not there, and drops what interrupted writes left. The folder belongs to this process from now on.
func Open[T any](dir string, log *slog.Logger) (*Dir[T], error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open records: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open records: %w", err)
	}
	f, err := root.Open(".")
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open records: %w", err), root.Close())
	}
	d := &Dir[T]{log: log, root: root, dir: f}
	d.flush.sync = func() error {
		err := f.Sync()
		if errors.Is(err, unix.EINVAL) {
			err = nil // a file system without flushes of folders keeps renames by itself
		}
		return err
	}
	names, err := d.list()
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	for _, name := range names {
		if strings.HasPrefix(name, ".") && strings.HasSuffix(name, tmpSuffix) {
			if err := root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, errors.Join(fmt.Errorf("drop the interrupted write %s: %w", name, err), d.Close())
			}
			log.Info("dropped an interrupted write", "file", dir+"/"+name)
		}
	}
	return d, nil
}

// Close lets go of the folder. Records stay.
func (d *Dir[T]) Close() error { return errors.Join(d.dir.Close(), d.root.Close()) }

func (d *Dir[T]) list() ([]string, error) {
	f, err := d.root.Open(".")
	if err != nil {
		return nil, fmt.Errorf("list records: %w", err)
	}
	names, err := f.Readdirnames(-1)
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("list records: %w", err)
	}
	return names, nil
}

// checkName refuses names that are no file names of their own.
func checkName(name string) error {
	if name == "" || name[0] == '.' || len(name) > maxName || strings.ContainsAny(name, "/\x00") {
		return errs.New(errs.Invalid, "record name %q: not a plain file name", name)
	}
	return nil
}

// Put writes a record, in place of the one of that name if there is one. On an error the old one is still there, unless it was the last flush that failed: then
// either may be.
func (d *Dir[T]) Put(name string, rec T, durable bool) error {
	if err := checkName(name); err != nil {
		return err
	}
	data, err := json.Marshal(rec)
	if err != nil {
		return fmt.Errorf("put record %s: %w", name, err)
	}
	tmp := "." + name + "." + strconv.FormatUint(d.serial.Add(1), 10) + tmpSuffix
	err = d.write(tmp, append(data, '\n'), durable)
	if err == nil {
		err = d.root.Rename(tmp, name+suffix)
	}
	if err != nil {
		if rerr := d.root.Remove(tmp); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
			err = errors.Join(err, rerr)
		}
		return fmt.Errorf("put record %s: %w", name, err)
	}
	if durable {
		if err := d.flush.wait(); err != nil {
			return fmt.Errorf("put record %s: flush: %w", name, err)
		}
	}
	return nil
}

func (d *Dir[T]) write(tmp string, data []byte, durable bool) error {
	f, err := d.root.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil && durable {
		err = datasync(f)
	}
	return errors.Join(err, f.Close())
}

func datasync(f *os.File) error {
	for {
		err := unix.Fdatasync(int(f.Fd()))
		if err != unix.EINTR {
			return err
		}
	}
}

// Get reads a record; errs.NotFound if there is none.
func (d *Dir[T]) Get(name string) (T, error) {
	var rec T
	if err := checkName(name); err != nil {
		return rec, err
	}
	data, err := d.root.ReadFile(name + suffix)
	if errors.Is(err, fs.ErrNotExist) {
		return rec, errs.New(errs.NotFound, "no record %s", name)
	}
	if err == nil {
		err = json.Unmarshal(data, &rec)
	}
	if c, ok := any(&rec).(Checked); ok && err == nil {
		err = c.Check(name)
	}
	if err != nil {
		return rec, fmt.Errorf("read record %s: %w", name, err)
	}
	return rec, nil
}

// Delete removes a record. One that is not there is no error.
func (d *Dir[T]) Delete(name string, durable bool) error {
	if err := checkName(name); err != nil {
		return err
	}
	if err := d.root.Remove(name + suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("delete record %s: %w", name, err)
	}
	if durable {
		if err := d.flush.wait(); err != nil {
			return fmt.Errorf("delete record %s: flush: %w", name, err)
		}
	}
	return nil
}

// All reads every record. Those that cannot be read are renamed to *.broken and logged. It is meant for the start, before anyone puts.
func (d *Dir[T]) All() (map[string]T, error) {
	names, err := d.list()
	if err != nil {
		return nil, err
	}
	all := make(map[string]T, len(names))
	for _, file := range names {
		name, ok := strings.CutSuffix(file, suffix)
		if !ok || checkName(name) != nil {
			continue
		}
		rec, err := d.Get(name)
		if errors.Is(err, errs.NotFound) {
			continue
		}
		if err != nil {
			aside := file + brokenSuffix
			d.log.Error("a record cannot be read and is set aside", "record", name, "now", aside, "err", err)
			if err := d.root.Rename(file, aside); err != nil {
				return nil, fmt.Errorf("set the broken record %s aside: %w", name, err)
			}
			continue
		}
		all[name] = rec
	}
	return all, nil
}

// flusher lets all who wait for the same flush share one: whoever comes while a flush runs joins the next one.
type flusher struct {
	sync func() error

	mu   sync.Mutex // guards next
	next *batch     // open for joining, nil if nobody waits
	turn sync.Mutex // held over a flush, by design: it is what makes those who come meanwhile gather
}

type batch struct {
	once    sync.Once
	err     error
	waiters int // guarded by flusher.mu
}

// wait returns when a flush that began after the call is done.
func (f *flusher) wait() error {
	f.mu.Lock()
	if f.next == nil {
		f.next = new(batch)
	}
	b := f.next
	b.waiters++
	f.mu.Unlock()
	b.once.Do(func() { // the first one flushes for all, the others wait here
		f.turn.Lock()
		defer f.turn.Unlock()
		f.mu.Lock()
		f.next = nil // closed: who comes now was not there when this flush began
		f.mu.Unlock()
		b.err = f.sync()
	})
	return b.err
}
