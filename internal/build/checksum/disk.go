package checksum

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
)

// The file <key>.files, little-endian, is written aside and renamed:
//
//	"CTNFILE1"  CRC-32C of all behind it u32  number of nodes u32  number of results u32
//	results     key [32] digest [32]
//	nodes       the root first, then the kids of one after the other, breadth first:
//	            name length u16, flags u8, kids u32, dev, ino, size, mtime, ctime u64, mode, uid, gid u32, rdev u64, digest [32], name, zero byte
const (
	filesMagic  = "CTNFILE1"
	filesHeader = len(filesMagic) + 12
	nodeFixed   = 2 + 1 + 4 + 5*8 + 3*4 + 8 + 32
	filesSuffix = ".files"

	flagKnown   = 1
	flagSettled = 2
	flagListed  = 4

	// maxNodes and maxFile bound what is kept of one directory, maxFiles and maxBytes of all.
	maxNodes = 4 << 20
	maxFile  = 1 << 30
	maxFiles = 64
	maxBytes = 512 << 20
)

var errDamaged = errors.New("file is damaged")

func decodeSum(dgst digest.Digest) (sum Sum, err error) {
	raw, err := hex.DecodeString(dgst.Encoded())
	if err != nil || len(raw) != len(sum) {
		return sum, errDamaged
	}
	return Sum(raw), nil
}

func (s *Sums) path(key string) string {
	sum := sha256.Sum256([]byte(key))
	return filepath.Join(s.opts.Dir, hex.EncodeToString(sum[:16])+filesSuffix)
}

// load reads what is known of a directory; nothing when there is nothing, or nothing sound.
func (s *Sums) load(key string) *known {
	data, err := os.ReadFile(s.path(key))
	if err == nil {
		var k *known
		if k, err = decode(data); err == nil {
			return k
		}
	}
	if !errors.Is(err, os.ErrNotExist) {
		s.log.Warn("checksums of a build context cannot be read, they are taken again", "context", key, "error", err)
	}
	return &known{}
}

// save writes what is known, in the background: to lose it costs only time. The bytes are made at once, as the next one may change what is known.
func (s *Sums) save(key string, k *known) {
	data := encode(k)
	if data == nil {
		return
	}
	path := s.path(key)
	s.later.Go(func() {
		if err := s.write(path, data); err != nil {
			s.log.Warn("checksums of a build context cannot be kept", "context", key, "error", err)
		}
	})
}

func (s *Sums) write(path string, data []byte) error {
	f, err := os.CreateTemp(s.opts.Dir, ".new-")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return s.bound()
}

// bound removes the files that were not written for longest when there are too many.
func (s *Sums) bound() error {
	entries, err := os.ReadDir(s.opts.Dir)
	if err != nil {
		return err
	}
	var infos []os.FileInfo
	var sum int64
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || !strings.HasSuffix(e.Name(), filesSuffix) {
			continue
		}
		infos = append(infos, info)
		sum += info.Size()
	}
	slices.SortFunc(infos, func(a, b os.FileInfo) int { return cmp.Compare(a.ModTime().UnixNano(), b.ModTime().UnixNano()) })
	for i := 0; i < len(infos)-1 && (len(infos)-i > maxFiles || sum > maxBytes); i++ {
		if err := os.Remove(filepath.Join(s.opts.Dir, infos[i].Name())); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		sum -= infos[i].Size()
	}
	return nil
}

// encode gives the bytes of the file; nil when there is too much.
func encode(k *known) []byte {
	nodes := []*node{&k.root}
	size := filesHeader + len(k.results)*64
	for i := 0; i < len(nodes); i++ {
		n := nodes[i]
		size += nodeFixed + len(n.name) + 1
		if len(nodes)+len(n.kids) > maxNodes {
			return nil
		}
		for j := range n.kids {
			nodes = append(nodes, &n.kids[j])
		}
	}
	if size > maxFile {
		return nil
	}
	le := binary.LittleEndian
	b := append(make([]byte, 0, size), filesMagic...)
	b = le.AppendUint32(b, 0)
	b = le.AppendUint32(b, uint32(len(nodes)))
	b = le.AppendUint32(b, 0)
	results := 0
	for key, dgst := range k.results {
		sum, err := decodeSum(dgst)
		if err != nil {
			continue
		}
		b = append(append(b, key[:]...), sum[:]...)
		results++
	}
	le.PutUint32(b[filesHeader-4:], uint32(results))
	for _, n := range nodes {
		b = le.AppendUint16(b, uint16(len(n.name)))
		b = append(b, flags(n))
		b = le.AppendUint32(b, uint32(len(n.kids)))
		for _, v := range [...]uint64{n.dev, n.ino, uint64(n.size), uint64(n.mtime), uint64(n.ctime)} {
			b = le.AppendUint64(b, v)
		}
		b = le.AppendUint32(b, n.mode)
		b = le.AppendUint32(b, n.uid)
		b = le.AppendUint32(b, n.gid)
		b = le.AppendUint64(b, n.rdev)
		b = append(b, n.sum[:]...)
		b = append(append(b, n.name...), 0)
	}
	le.PutUint32(b[len(filesMagic):], crc32.Checksum(b[len(filesMagic)+4:], castagnoli))
	return b
}

func flags(n *node) (f byte) {
	if n.known {
		f |= flagKnown
	}
	if n.settled {
		f |= flagSettled
	}
	if n.listed {
		f |= flagListed
	}
	return f
}

// decode reads the file.
func decode(data []byte) (*known, error) {
	le := binary.LittleEndian
	if len(data) < filesHeader || string(data[:len(filesMagic)]) != filesMagic {
		return nil, fmt.Errorf("%w: no head", errDamaged)
	}
	if crc32.Checksum(data[len(filesMagic)+4:], castagnoli) != le.Uint32(data[len(filesMagic):]) {
		return nil, fmt.Errorf("%w: wrong check sum", errDamaged)
	}
	count, results := uint64(le.Uint32(data[len(filesMagic)+4:])), uint64(le.Uint32(data[len(filesMagic)+8:]))
	rest := data[filesHeader:]
	if count == 0 || count > maxNodes || results*64+count*(nodeFixed+1) > uint64(len(rest)) {
		return nil, fmt.Errorf("%w: it is too short", errDamaged)
	}
	k := &known{results: make(map[Sum]digest.Digest, results)}
	for range results {
		k.results[Sum(rest[:32])] = digest.NewDigestFromBytes(digest.SHA256, rest[32:64])
		rest = rest[64:]
	}
	// All names are parts of one string.
	text := string(rest)
	d := decoder{data: rest, text: text}
	nodes := make([]node, count-1)
	queue := make([]*node, 1, count)
	queue[0] = &k.root
	for i := 0; i < len(queue); i++ {
		kids, err := d.node(queue[i])
		if err != nil {
			return nil, err
		}
		if kids > len(nodes) {
			return nil, fmt.Errorf("%w: more names than nodes", errDamaged)
		}
		own := nodes[:kids:kids]
		nodes = nodes[kids:]
		queue[i].kids = own
		for j := range own {
			queue = append(queue, &own[j])
		}
	}
	if len(nodes) > 0 || d.at != len(d.data) {
		return nil, fmt.Errorf("%w: something is left over", errDamaged)
	}
	return k, sorted(queue)
}

// sorted checks what searching and system calls count on.
func sorted(nodes []*node) error {
	for _, n := range nodes {
		for i := range n.kids {
			name := n.kids[i].name
			if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") || i > 0 && n.kids[i-1].name >= name {
				return fmt.Errorf("%w: name %q", errDamaged, name)
			}
		}
	}
	return nil
}

type decoder struct {
	data []byte
	text string
	at   int
}

func (d *decoder) node(n *node) (kids int, err error) {
	le := binary.LittleEndian
	if len(d.data)-d.at < nodeFixed {
		return 0, fmt.Errorf("%w: a node is cut", errDamaged)
	}
	b := d.data[d.at : d.at+nodeFixed]
	length := int(le.Uint16(b))
	f := b[2]
	kids = int(le.Uint32(b[3:]))
	b = b[7:]
	n.dev, n.ino, n.size = le.Uint64(b), le.Uint64(b[8:]), int64(le.Uint64(b[16:]))
	n.mtime, n.ctime = int64(le.Uint64(b[24:])), int64(le.Uint64(b[32:]))
	n.mode, n.uid, n.gid, n.rdev = le.Uint32(b[40:]), le.Uint32(b[44:]), le.Uint32(b[48:]), le.Uint64(b[52:])
	n.sum = Sum(b[60:92])
	n.known, n.settled, n.listed = f&flagKnown != 0, f&flagSettled != 0, f&flagListed != 0
	from := d.at + nodeFixed
	if len(d.data)-from < length+1 || d.data[from+length] != 0 {
		return 0, fmt.Errorf("%w: a name is cut", errDamaged)
	}
	n.name = d.text[from : from+length]
	d.at = from + length + 1
	return kids, nil
}
