package checksum

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"log/slog"
	"os"
	"sync"

	"github.com/opencontainers/go-digest"
)

// One record of the file chains: key of the selection [32], its digest [32], CRC-32C of both. A record that is torn or damaged is passed over.
const (
	chainRecord = 32 + 32 + 4
	// maxChains is how many are kept; when there are more, the older half is forgotten.
	maxChains = 32768
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// chainResults remembers digests of selections of chains.
type chainResults struct {
	path string
	log  *slog.Logger

	mu    sync.Mutex // guards all below
	known map[Sum]Sum
	order []Sum
	file  *os.File // nil: could not be opened, everything is remembered in memory only
}

func openChains(path string, log *slog.Logger) *chainResults {
	c := &chainResults{path: path, log: log, known: map[Sum]Sum{}}
	data, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		log.Warn("checksums of layers cannot be read, they are taken again", "error", err)
	}
	sound := c.parse(data)
	if sound != len(data) || len(c.order) > maxChains {
		c.rewrite()
		return c
	}
	c.open(os.O_APPEND)
	return c
}

// parse takes the records of data; it answers how many bytes of it are records that are whole.
func (c *chainResults) parse(data []byte) (sound int) {
	for rest := data; len(rest) >= chainRecord; rest = rest[chainRecord:] {
		rec := rest[:chainRecord]
		if crc32.Checksum(rec[:64], castagnoli) != binary.LittleEndian.Uint32(rec[64:]) {
			continue
		}
		sound += chainRecord
		c.add(Sum(rec[:32]), Sum(rec[32:64]))
	}
	return sound
}

func (c *chainResults) add(key, sum Sum) {
	if _, ok := c.known[key]; !ok {
		c.order = append(c.order, key)
	}
	c.known[key] = sum
}

func (c *chainResults) open(flags int) {
	f, err := os.OpenFile(c.path, os.O_WRONLY|os.O_CREATE|flags, 0o600)
	if err != nil {
		c.log.Warn("checksums of layers cannot be kept", "error", err)
		return
	}
	c.file = f
}

// rewrite writes the younger half, or what is sound.
func (c *chainResults) rewrite() {
	if len(c.order) > maxChains {
		for _, key := range c.order[:len(c.order)-maxChains/2] {
			delete(c.known, key)
		}
		c.order = append([]Sum(nil), c.order[len(c.order)-maxChains/2:]...)
	}
	if c.file != nil {
		c.file.Close()
		c.file = nil
	}
	data := make([]byte, 0, len(c.order)*chainRecord)
	for _, key := range c.order {
		data = appendRecord(data, key, c.known[key])
	}
	err := os.WriteFile(c.path+".new", data, 0o600)
	if err == nil {
		err = os.Rename(c.path+".new", c.path)
	}
	if err != nil {
		c.log.Warn("checksums of layers cannot be kept", "error", err)
		return
	}
	c.open(os.O_APPEND)
}

func appendRecord(b []byte, key, sum Sum) []byte {
	from := len(b)
	b = append(append(b, key[:]...), sum[:]...)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b[from:], castagnoli))
}

func (c *chainResults) get(key Sum) (digest.Digest, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	sum, ok := c.known[key]
	if !ok {
		return "", false
	}
	return digest.NewDigestFromBytes(digest.SHA256, sum[:]), true
}

// put remembers a digest. The short write is done under the lock: records must not mix, and nobody waits for it but who takes a checksum.
func (c *chainResults) put(key Sum, dgst digest.Digest) {
	sum, err := decodeSum(dgst)
	if err != nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.known[key]; ok {
		return
	}
	c.add(key, sum)
	if len(c.order) > maxChains {
		c.rewrite()
		return
	}
	if c.file == nil {
		return
	}
	if _, err := c.file.Write(appendRecord(nil, key, sum)); err != nil {
		c.log.Warn("checksum of a layer cannot be kept", "error", err)
	}
}

func (c *chainResults) close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.file == nil {
		return nil
	}
	err := c.file.Close()
	c.file = nil
	return err
}
