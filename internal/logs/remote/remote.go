// Package remote is the log driver that is a plugin: a program outside the engine that implements LogDriver.
//
// It owns the pipe of a container and a plugin, a file beside the container's records. It promises what package ship asks: a message counts as sent when the plugin has read it.
//
//	engine                                                             plugin
//	  │ (makes the named pipe)                                            │
//	  │ POST /LogDriver.StartLogging {"File": pipe, "Info": {…}} ────────▶│ opens it for reading
//	  │ messages ─────────────────── pipe ───────────────────────────────▶│
//	  │ POST /LogDriver.StopLogging {"File": pipe} ──────────────────────▶│ closes it
//
// A message is a length, u32 big endian, and a protocol buffer: source string = 1, time_nano int64 = 2, line bytes = 3, partial bool = 4,
// partial_log_metadata = 5 {last bool = 1, id string = 2, ordinal int32 = 3}.
package remote

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/logs/ship"
	"corten.dev/corten/internal/plugin"
)

const (
	iface = "LogDriver"
	// startTime is how long a plugin may take to begin, stopTime to end, stall for taking nothing.
	startTime = 10 * time.Second
	stopTime  = 3 * time.Second
	stall     = time.Minute
)

// Find makes the driver of a plugin of which there is a trace; nil else. The plugin is not asked.
func Find(set *plugin.Set, name string) ship.Driver {
	names, err := set.Names()
	if err != nil || !slices.Contains(names, name) {
		return nil
	}
	client, err := set.Client(name, iface)
	if err != nil {
		return nil
	}
	return driver{client}
}

type driver struct{ client *plugin.Client }

// Name implements [ship.Driver].
func (d driver) Name() string { return d.client.Name() }

// Options implements [ship.Driver]: what it takes only the plugin knows.
func (d driver) Options() []string { return []string{ship.AnyOption} }

// Check implements [ship.Driver]: the plugin refuses what it does not like when logging starts.
func (d driver) Check(map[string]string) error { return nil }

// Policy implements [ship.Driver].
func (d driver) Policy(map[string]string) ship.Policy { return ship.Policy{MaxWait: 10 * time.Second} }

// answer is what every call brings.
type answer struct{ Err string }

// Open implements [ship.Driver].
func (d driver) Open(ctx context.Context, info *ship.Info) (ship.Destination, error) {
	w := &writer{client: d.client, path: filepath.Join(filepath.Dir(info.LogPath), "ship", strings.ReplaceAll(d.Name(), "/", "_")+".fifo")}
	if err := os.MkdirAll(filepath.Dir(w.path), 0o700); err != nil {
		return nil, err
	}
	if err := os.Remove(w.path); err != nil && !errors.Is(err, fs.ErrNotExist) { // of an engine that was killed
		return nil, err
	}
	if err := syscall.Mkfifo(w.path, 0o700); err != nil {
		return nil, fmt.Errorf("make pipe %s: %w", w.path, err)
	}
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	// A plugin may wait for the writer before it answers, so the pipe is opened meanwhile.
	type opened struct {
		f   *os.File
		err error
	}
	pipe := make(chan opened, 1)
	go func() {
		f, err := openWriter(ctx, w.path)
		pipe <- opened{f, err}
	}()
	var out answer
	err := d.client.Do(ctx, plugin.Call{Method: "StartLogging", In: map[string]any{"File": w.path, "Info": info}, Out: &out, Limit: startTime, NoWait: true})
	if err == nil && out.Err != "" {
		err = errors.New(out.Err)
	}
	if err != nil {
		cancel()
		o := <-pipe
		if o.f != nil {
			o.f.Close()
		}
		return nil, errors.Join(fmt.Errorf("error creating logger: %s: %w", d.Name(), err), os.Remove(w.path))
	}
	o := <-pipe
	if w.f = o.f; o.err != nil {
		return nil, errors.Join(fmt.Errorf("plugin %s does not open its pipe: %w", d.Name(), o.err), w.Close())
	}
	return w, nil
}

// openWriter opens the pipe once somebody reads from it.
func openWriter(ctx context.Context, path string) (*os.File, error) {
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		f, err := os.OpenFile(path, os.O_WRONLY|syscall.O_NONBLOCK, 0)
		if !errors.Is(err, syscall.ENXIO) {
			return f, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(pause):
		}
	}
}

type writer struct {
	client *plugin.Client
	path   string
	f      *os.File
	buf    []byte
}

// Send implements [ship.Destination].
func (w *writer) Send(ctx context.Context, msgs []ship.Message) (int, error) {
	stop := context.AfterFunc(ctx, func() { w.f.SetWriteDeadline(time.Now()) })
	defer stop()
	w.buf = w.buf[:0]
	for i := range msgs {
		at := len(w.buf)
		w.buf = message(append(w.buf, 0, 0, 0, 0), &msgs[i])
		binary.BigEndian.PutUint32(w.buf[at:], uint32(len(w.buf)-at-4))
	}
	for b := w.buf; len(b) > 0; {
		if ctx.Err() != nil {
			return 0, ctx.Err()
		}
		if err := w.f.SetWriteDeadline(time.Now().Add(stall)); err != nil {
			return 0, err
		}
		n, err := w.f.Write(b[:min(len(b), 64<<10)])
		if err != nil {
			return 0, fmt.Errorf("plugin %s: %w", w.client.Name(), err)
		}
		b = b[n:]
	}
	return w.read(ctx, len(msgs))
}

// read waits until the plugin has read everything.
func (w *writer) read(ctx context.Context, n int) (int, error) {
	raw, err := w.f.SyscallConn()
	if err != nil {
		return 0, err
	}
	last, since := -1, time.Now()
	for pause := 50 * time.Microsecond; ; pause = min(2*pause, 10*time.Millisecond) {
		left, events := 0, int16(0)
		var lerr error
		err := raw.Control(func(fd uintptr) {
			left, lerr = unix.IoctlGetInt(int(fd), unix.TIOCINQ)
			p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
			if _, perr := unix.Poll(p, 0); perr == nil {
				events = p[0].Revents
			}
		})
		switch {
		case errors.Join(err, lerr) != nil:
			return 0, errors.Join(err, lerr)
		case events&unix.POLLERR != 0:
			return 0, errs.New(errs.Unavailable, "plugin %s closed its pipe", w.client.Name())
		case left == 0:
			return n, nil
		}
		if left != last {
			last, since = left, time.Now()
		}
		if time.Since(since) > stall {
			return 0, fmt.Errorf("plugin %s reads nothing: %w", w.client.Name(), os.ErrDeadlineExceeded)
		}
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-time.After(pause):
		}
	}
}

// Close implements [ship.Destination].
func (w *writer) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), stopTime)
	defer cancel()
	var out answer
	err := w.client.Do(ctx, plugin.Call{Method: "StopLogging", In: map[string]any{"File": w.path}, Out: &out, Limit: stopTime, NoWait: true})
	if err == nil && out.Err != "" {
		err = errors.New(out.Err)
	}
	if w.f != nil {
		err = errors.Join(err, w.f.Close())
	}
	return errors.Join(err, os.Remove(w.path))
}

// message appends the protocol buffer of a message.
func message(b []byte, m *ship.Message) []byte {
	source := "stdout"
	if m.Stderr() {
		source = "stderr"
	}
	b = field(b, 1, []byte(source))
	b = number(b, 2, uint64(m.Time.UnixNano()))
	b = field(b, 3, m.Line)
	if !m.Split() {
		return b
	}
	b = number(b, 4, 1)
	var part []byte
	if m.Partial.Last {
		part = number(part, 1, 1)
	}
	part = field(part, 2, []byte(m.Partial.ID))
	part = number(part, 3, uint64(m.Partial.Ordinal))
	return field(b, 5, part)
}

// field appends a field of bytes (wire type 2), number one of type varint (0).
func field(b []byte, num byte, value []byte) []byte {
	b = binary.AppendUvarint(append(b, num<<3|2), uint64(len(value)))
	return append(b, value...)
}

func number(b []byte, num byte, value uint64) []byte {
	return binary.AppendUvarint(append(b, num<<3), value)
}
