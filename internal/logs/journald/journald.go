// Package journald is the log driver journald: messages to systemd's journal in its native protocol.
//
// It owns the protocol's client side. It promises Docker's fields, and two that tell repeated messages from new ones.
//
//	MESSAGE PRIORITY SYSLOG_IDENTIFIER SYSLOG_TIMESTAMP
//	CONTAINER_ID CONTAINER_ID_FULL CONTAINER_NAME CONTAINER_TAG IMAGE_NAME
//	CONTAINER_PARTIAL_MESSAGE CONTAINER_PARTIAL_ID CONTAINER_PARTIAL_ORDINAL CONTAINER_PARTIAL_LAST      pieces of long lines
//	CONTAINER_LOG_EPOCH CONTAINER_LOG_ORDINAL                                                            the same for a message that is sent again
//	LABEL_OR_VARIABLE                                                                                    chosen ones, in capitals
//
// A datagram holds one message: "NAME=value\n" for each field, or for values with a newline "NAME\n", the length as u64 little endian, the value and "\n". What is too large for a
// datagram goes as a sealed memory file whose descriptor the datagram carries.
package journald

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/logs/ship"
)

// DefaultSocket is where the journal listens.
const DefaultSocket = "/run/systemd/journal/socket"

// Driver is journald.
type Driver struct {
	Socket string // default DefaultSocket
}

// Name implements [ship.Driver].
func (Driver) Name() string { return "journald" }

// Options implements [ship.Driver].
func (Driver) Options() []string { return nil }

// Check implements [ship.Driver].
func (Driver) Check(map[string]string) error { return nil }

// Policy implements [ship.Driver]: the journal is restarted now and then.
func (Driver) Policy(map[string]string) ship.Policy { return ship.Policy{MaxWait: 5 * time.Second} }

// Open implements [ship.Driver].
func (d Driver) Open(_ context.Context, info *ship.Info) (ship.Destination, error) {
	socket := d.Socket
	if socket == "" {
		socket = DefaultSocket
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		cause := err
		if errors.Is(err, fs.ErrNotExist) { // docker's client takes the kernel's words for a command that is not in the image, and ends with 127
			cause = errs.New(errs.Unavailable, "there is no %s", socket)
		}
		return nil, errs.New(errs.Unavailable, "journald is not enabled on this host: %w", cause)
	}
	w := &writer{conn: conn}
	if err := w.prepare(info); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return w, nil
}

type writer struct {
	conn *net.UnixConn
	same []byte // fields that every message has
	buf  []byte
}

func (w *writer) prepare(info *ship.Info) error {
	tag, err := info.Tag(ship.DefaultTag)
	if err != nil {
		return err
	}
	fields, err := info.Attributes(fieldName)
	if err != nil {
		return err
	}
	delete(fields, "") // nothing of the name is allowed in a field's
	maps.Copy(fields, map[string]string{
		"CONTAINER_ID": info.ID(), "CONTAINER_ID_FULL": info.FullID(), "CONTAINER_NAME": info.Name(), "CONTAINER_TAG": tag, "IMAGE_NAME": info.ImageName(), "SYSLOG_IDENTIFIER": tag,
		"CONTAINER_LOG_EPOCH": info.FullID(),
	})
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		w.same = appendField(w.same, name, []byte(fields[name]))
	}
	return nil
}

// fieldName makes a field's name of any: capitals, digits and underscores, not beginning with an underscore.
func fieldName(name string) string {
	name = strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z':
			return r - 'a' + 'A'
		case r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
			return r
		}
		return '_'
	}, name)
	return strings.TrimLeft(name, "_")
}

// appendField appends one field in the native format.
func appendField(b []byte, name string, value []byte) []byte {
	b = append(b, name...)
	if bytes.IndexByte(value, '\n') < 0 {
		b = append(b, '=')
	} else {
		b = append(b, '\n')
		b = binary.LittleEndian.AppendUint64(b, uint64(len(value)))
	}
	b = append(b, value...)
	return append(b, '\n')
}

// Send implements [ship.Destination].
func (w *writer) Send(ctx context.Context, msgs []ship.Message) (int, error) {
	stop := context.AfterFunc(ctx, func() { w.conn.SetDeadline(time.Now()) })
	defer stop()
	for i := range msgs {
		if ctx.Err() != nil {
			return i, ctx.Err()
		}
		if err := w.conn.SetWriteDeadline(time.Now().Add(stall)); err != nil {
			return i, err
		}
		w.buf = w.message(w.buf[:0], &msgs[i])
		_, err := w.conn.Write(w.buf)
		if errors.Is(err, unix.EMSGSIZE) || errors.Is(err, unix.ENOBUFS) {
			err = w.large(w.buf)
		}
		if err != nil {
			return i, err
		}
	}
	return len(msgs), nil
}

// stall is how long the journal may take nothing.
const stall = 30 * time.Second

func (w *writer) message(b []byte, m *ship.Message) []byte {
	priority := "6"
	if m.Stderr() {
		priority = "3"
	}
	b = append(b, w.same...)
	b = appendField(b, "PRIORITY", []byte(priority))
	b = appendField(b, "SYSLOG_TIMESTAMP", []byte(m.Time.UTC().Format(time.RFC3339Nano)))
	b = appendField(b, "CONTAINER_LOG_ORDINAL", strconv.AppendInt(nil, m.Number, 10))
	if m.Split() {
		b = appendField(b, "CONTAINER_PARTIAL_ID", []byte(m.Partial.ID))
		b = appendField(b, "CONTAINER_PARTIAL_ORDINAL", strconv.AppendInt(nil, int64(m.Partial.Ordinal), 10))
		b = appendField(b, "CONTAINER_PARTIAL_LAST", strconv.AppendBool(nil, m.Partial.Last))
		if !m.Partial.Last {
			b = appendField(b, "CONTAINER_PARTIAL_MESSAGE", []byte("true"))
		}
	}
	return appendField(b, "MESSAGE", m.Line)
}

// large sends a message as a memory file. The journal takes only sealed ones: nobody can change them while it reads.
func (w *writer) large(b []byte) error {
	fd, err := unix.MemfdCreate("corten-log", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return fmt.Errorf("memfd: %w", err)
	}
	f := os.NewFile(uintptr(fd), "message")
	defer f.Close()
	if _, err := f.Write(b); err != nil {
		return err
	}
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE|unix.F_SEAL_SEAL); err != nil {
		return fmt.Errorf("seal a memory file: %w", err)
	}
	raw, err := w.conn.SyscallConn()
	if err != nil {
		return err
	}
	rights := unix.UnixRights(int(f.Fd()))
	var serr error
	err = raw.Write(func(fd uintptr) bool {
		serr = unix.Sendmsg(int(fd), nil, rights, nil, 0)
		return !errors.Is(serr, unix.EAGAIN)
	})
	return errors.Join(err, serr)
}

// Close implements [ship.Destination].
func (w *writer) Close() error { return w.conn.Close() }
