package ship

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"

	"corten.dev/corten/internal/logs"
)

// kept is what a follower keeps on disk.
type kept struct {
	place
	Mark    string `json:",omitempty"` // of a [Marked] destination
	Sent    int64  `json:",omitempty"` // messages
	Lost    int64  `json:",omitempty"` // lines that the log's bound took before they were sent
	Refused int64  `json:",omitempty"` // messages that were given up
}

// keeper writes a follower's place into a small file, in turns into its two halves, so that one of them is whole whenever the engine or the host stops:
//
//	offset 0      crc u32 │ length u32 │ serial u64 │ JSON of kept       little endian; crc is CRC-32C of what follows it
//	offset 4096   the same
//
// It is not flushed: a power cut may take the last seconds of the log and of the place alike, and then some messages go out twice.
type keeper struct {
	f      *os.File
	serial uint64
	buf    []byte
}

const (
	half     = 4096
	keptHead = 16
)

// openKeeper opens or makes the file and reads the younger half that is whole.
func openKeeper(path string) (*keeper, kept, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, kept{}, err
	}
	k := &keeper{f: f}
	var state kept
	buf := make([]byte, 2*half)
	n, _ := f.ReadAt(buf, 0) // what is not there is not whole
	for off := 0; off < n; off += half {
		var one kept
		if serial, ok := decodeKept(buf[off:min(off+half, n)], &one); ok && serial > k.serial {
			k.serial, state = serial, one
		}
	}
	return k, state, nil
}

// Begin makes the state of a driver that was not there before, so that its first message is what the log has behind a place.
func Begin(path string, at logs.Place) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) { // of an earlier time
		return err
	}
	k, _, err := openKeeper(path)
	if err != nil {
		return err
	}
	return errors.Join(k.keep(&kept{place: place{Base: at}}), k.close())
}

func castagnoli(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

func decodeKept(b []byte, out *kept) (serial uint64, ok bool) {
	if len(b) < keptHead {
		return 0, false
	}
	size := int(binary.LittleEndian.Uint32(b[4:]))
	if size > len(b)-keptHead || binary.LittleEndian.Uint32(b) != castagnoli(b[4:keptHead+size]) {
		return 0, false
	}
	return binary.LittleEndian.Uint64(b[8:]), json.Unmarshal(b[keptHead:keptHead+size], out) == nil
}

// keep writes the state.
func (k *keeper) keep(state *kept) error {
	body, err := json.Marshal(state)
	if err != nil {
		return err
	}
	if len(body) > half-keptHead {
		return fmt.Errorf("the state of a log follower has %d bytes", len(body))
	}
	k.serial++
	b := append(k.buf[:0], make([]byte, keptHead)...)
	b = append(b, body...)
	binary.LittleEndian.PutUint32(b[4:], uint32(len(body)))
	binary.LittleEndian.PutUint64(b[8:], k.serial)
	binary.LittleEndian.PutUint32(b, castagnoli(b[4:]))
	k.buf = b
	if _, err := k.f.WriteAt(b, int64(k.serial%2)*half); err != nil {
		return fmt.Errorf("keep the place in the log: %w", err)
	}
	return nil
}

func (k *keeper) close() error { return k.f.Close() }
