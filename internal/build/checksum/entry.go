package checksum

import (
	"crypto/sha256"
	"encoding/binary"
	"hash"
	"sort"
	"strings"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// What a checksum is made of. All numbers are little-endian, lengths stand before what they measure:
//
//	entry      file, link, device, fifo:  kind u8, mode u32, uid u32, gid u32, device u64, size u64, target, xattrs (count, name, value …), content [32]
//	           directory itself:          the same, size 0 and no content
//	directory  "dir", entry of itself or zeros, then of each child that is chosen, sorted: name, its entry or directory
//	selection  "corten files 1", then of each match, in their order: name, its entry or directory

// Sum is a digest of one thing in a tree.
type Sum = [sha256.Size]byte

// Entry is what a checksum covers of one file, link, directory or device: not its times, and not how many names it has.
type Entry struct {
	Mode     uint32 // as stat(2) has it, with the type
	UID, GID uint32
	Device   uint64 // number of a device
	Size     int64  // of a file's content
	Target   string // of a link
	Xattrs   []Xattr
	Content  Sum // SHA-256 of a file's content
}

// Xattr is an extended attribute.
type Xattr struct{ Name, Value string }

// Sum is the digest of an entry; of a directory, of itself without what is in it.
func (e *Entry) Sum() Sum {
	var fixed [64]byte
	b := append(fixed[:0], byte(e.Mode&unix.S_IFMT>>12))
	b = binary.LittleEndian.AppendUint32(b, e.Mode&0o7777)
	b = binary.LittleEndian.AppendUint32(b, e.UID)
	b = binary.LittleEndian.AppendUint32(b, e.GID)
	b = binary.LittleEndian.AppendUint64(b, e.Device)
	b = binary.LittleEndian.AppendUint64(b, uint64(e.Size))
	b = appendText(b, e.Target)
	b = binary.LittleEndian.AppendUint64(b, uint64(len(e.Xattrs)))
	for _, x := range e.Xattrs {
		b = appendText(appendText(b, x.Name), x.Value)
	}
	return sha256.Sum256(append(b, e.Content[:]...))
}

func appendText(b []byte, s string) []byte {
	return append(binary.LittleEndian.AppendUint64(b, uint64(len(s))), s...)
}

// Kid is a named thing of a directory or a selection.
type Kid struct {
	Name string
	Sum  Sum
}

// Dir is the digest of a directory: self is its entry, or zeros where only what is in it counts; kids are sorted by name.
func Dir(self Sum, kids []Kid) Sum {
	h := newDirHash(self)
	for i := range kids {
		h.add(kids[i].Name, &kids[i].Sum)
	}
	return h.sum()
}

// Selected is the digest of a selection.
func Selected(matches []Kid) digest.Digest {
	h := &dirHash{h: sha256.New()}
	h.h.Write([]byte("corten files 1"))
	for i := range matches {
		h.add(matches[i].Name, &matches[i].Sum)
	}
	sum := h.sum()
	return digest.NewDigestFromBytes(digest.SHA256, sum[:])
}

type dirHash struct {
	h   hash.Hash
	buf []byte
}

func newDirHash(self Sum) *dirHash {
	d := &dirHash{h: sha256.New(), buf: make([]byte, 0, 4096)}
	d.buf = append(append(d.buf, "dir"...), self[:]...)
	return d
}

func (d *dirHash) add(name string, sum *Sum) {
	if len(d.buf) > 3500 {
		d.h.Write(d.buf)
		d.buf = d.buf[:0]
	}
	d.buf = append(appendText(d.buf, name), sum[:]...)
}

func (d *dirHash) sum() (out Sum) {
	d.h.Write(d.buf)
	d.h.Sum(out[:0])
	return out
}

// Counts tells whether an xattr is a part of a tree: not what overlayfs keeps for itself, and not the labels of this host.
func Counts(name string) bool {
	return name != "security.selinux" && !strings.HasPrefix(name, "trusted.overlay.") && !strings.HasPrefix(name, "user.overlay.")
}

// XattrSource reads xattrs: of a descriptor, or by a path that is not followed.
type XattrSource struct {
	Fd   int
	Path string // when set, instead of Fd
}

func (x XattrSource) list(buf []byte) (int, error) {
	if x.Path != "" {
		return unix.Llistxattr(x.Path, buf)
	}
	return unix.Flistxattr(x.Fd, buf)
}

func (x XattrSource) get(name string, buf []byte) (int, error) {
	if x.Path != "" {
		return unix.Lgetxattr(x.Path, name, buf)
	}
	return unix.Fgetxattr(x.Fd, name, buf)
}

// Read gives the xattrs that count, sorted by name. What may not be read is left out, as a copy could not have it either.
func (x XattrSource) Read() ([]Xattr, error) {
	var small [256]byte
	buf := small[:]
	n, err := x.list(buf)
	if err == unix.ERANGE {
		buf = make([]byte, 64<<10) // the kernel's own bound
		n, err = x.list(buf)
	}
	if err == unix.ENOTSUP || err == nil && n == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all []Xattr
	for _, name := range strings.Split(strings.TrimRight(string(buf[:n]), "\x00"), "\x00") {
		if name == "" || !Counts(name) {
			continue
		}
		val := make([]byte, 256)
		n, err := x.get(name, val)
		if err == unix.ERANGE {
			val = make([]byte, 64<<10)
			n, err = x.get(name, val)
		}
		if err == unix.ENODATA || err == unix.ENOTSUP || err == unix.EPERM || err == unix.EACCES {
			continue
		}
		if err != nil {
			return nil, err
		}
		all = append(all, Xattr{name, string(val[:n])})
	}
	sort.Slice(all, func(i, j int) bool { return all[i].Name < all[j].Name })
	return all, nil
}
