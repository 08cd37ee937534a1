// Package ext4 makes ext4 file systems in sparse files, without a program to do so.
//
// It owns nothing. It promises that what it makes is mounted by any Linux that mounts ext4, holds nothing (not even lost+found) and belongs to root; that it takes as many bytes of data as asked for, the
// file being larger by what the file system needs for itself; and that only what is not zero is written, so that the file takes next to nothing at first.
//
// The layout is that of mke2fs without flex_bg: groups of 32,768 blocks of 4 KiB.
//
//	group 0          super block │ group descriptors │ block bitmap │ inode bitmap │ inodes │ root directory │ journal │ free …
//	groups 1, 3ⁿ,5ⁿ,7ⁿ  copies of the first two      │ block bitmap │ inode bitmap │ inodes │ free …
//	others                                             block bitmap │ inode bitmap │ inodes │ free …
//
// Bitmaps of all groups but the first and the last are marked as not initialised (uninit_bg): the kernel makes them when it needs them. See Documentation/filesystems/ext4 of the kernel.
package ext4

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"time"

	"corten.dev/corten/internal/errs"
)

const (
	blockSize     = 4096
	perGroup      = 8 * blockSize // blocks: what one bitmap block can count
	inodeSize     = 256
	perInode      = 16 << 10 // bytes of data for which there is one inode
	inodesInBlock = blockSize / inodeSize
	descSize      = 32
	rootInode     = 2
	journalInode  = 8
	firstInode    = 11
	kernelReserve = 4096 // blocks that the kernel keeps back, at most; else a fiftieth

	// MinSize and MaxSize bound how many bytes of data a file system may be asked to hold. The upper bound is that of block numbers of 32 bits, less what the file system takes itself.
	MinSize = 1 << 20
	MaxSize = 15 << 40
)

// layout is how a file system of some size is divided.
type layout struct {
	blocks        uint32 // all of them
	groups        uint32
	descBlocks    uint32
	inodesPer     uint32 // in a group
	tableBlocks   uint32 // of inodes, in a group
	journal       uint32 // blocks
	journalStart  uint32
	rootBlock     uint32
	freeBlocks    uint32
	reservedFirst uint32 // blocks of group 0 that are taken
}

// plan finds the least number of blocks that leaves as many bytes for data.
func plan(size int64) (layout, error) {
	if size < MinSize || size > MaxSize {
		return layout{}, errs.New(errs.Invalid, "an ext4 image holds between %d and %d bytes, not %d", MinSize, int64(MaxSize), size)
	}
	want := uint32((size + blockSize - 1) / blockSize)
	want += min(want/48, kernelReserve) + 4
	for blocks := want; ; {
		l := divide(blocks, size)
		if l.freeBlocks >= want {
			return l, nil
		}
		blocks += want - l.freeBlocks
	}
}

// divide lays a file system of some blocks out. A last group that has no room for itself is left away.
func divide(blocks uint32, size int64) layout {
	l := layout{blocks: blocks, journal: journalBlocks(size)}
	for {
		l.groups = (l.blocks + perGroup - 1) / perGroup
		l.descBlocks = (l.groups*descSize + blockSize - 1) / blockSize
		inodes := max(uint32(min(size/perInode, 1<<31)), 64)
		l.inodesPer = (inodes + l.groups - 1) / l.groups
		l.inodesPer = min((l.inodesPer+inodesInBlock-1)/inodesInBlock*inodesInBlock, 8*blockSize)
		l.tableBlocks = l.inodesPer / inodesInBlock
		last := l.blocks - (l.groups-1)*perGroup
		if l.groups > 1 && last < l.overhead(l.groups-1)+16 {
			l.blocks -= last
			continue
		}
		break
	}
	l.rootBlock = l.overhead(0)
	l.journalStart = l.rootBlock + 1
	l.reservedFirst = l.journalStart + l.journal
	var taken uint32 = l.reservedFirst
	for g := uint32(1); g < l.groups; g++ {
		taken += l.overhead(g)
	}
	if taken < l.blocks {
		l.freeBlocks = l.blocks - taken
	}
	return l
}

// journalBlocks is what e2fsprogs takes, too; 1,024 is the least that the kernel takes.
func journalBlocks(size int64) uint32 {
	switch {
	case size < 512<<20:
		return 1024
	case size < 1<<30:
		return 4096
	case size < 8<<30:
		return 8192
	}
	return 16384
}

// overhead is how many blocks of a group the file system takes itself.
func (l *layout) overhead(g uint32) uint32 {
	n := 2 + l.tableBlocks
	if hasSuper(g) {
		n += 1 + l.descBlocks
	}
	return n
}

// hasSuper tells whether a group holds a copy of the super block (sparse_super).
func hasSuper(g uint32) bool {
	if g <= 1 {
		return true
	}
	for _, base := range []uint32{3, 5, 7} {
		n := g
		for n%base == 0 {
			n /= base
		}
		if n == 1 {
			return true
		}
	}
	return false
}

// length is how many blocks a group has.
func (l *layout) length(g uint32) uint32 { return min(perGroup, l.blocks-g*perGroup) }

// Format makes an empty file system that holds size bytes of data in an empty file, and gives it its length. The caller flushes the file.
func Format(f *os.File, size int64) error {
	l, err := plan(size)
	if err != nil {
		return err
	}
	m := maker{f: f, l: l, now: uint32(time.Now().Unix())}
	if _, err := rand.Read(m.uuid[:]); err != nil {
		return err
	}
	if _, err := rand.Read(m.seed[:]); err != nil {
		return err
	}
	if err := m.write(); err != nil {
		return fmt.Errorf("make an ext4 file system in %s: %w", f.Name(), err)
	}
	return nil
}

type maker struct {
	f    io.WriterAt
	l    layout
	now  uint32
	uuid [16]byte
	seed [16]byte
}

var le, be = binary.LittleEndian, binary.BigEndian

func (m *maker) block(n uint32, b []byte) error {
	_, err := m.f.WriteAt(b, int64(n)*blockSize)
	return err
}

func (m *maker) write() error {
	if f, ok := m.f.(*os.File); ok {
		if err := f.Truncate(int64(m.l.blocks) * blockSize); err != nil {
			return err
		}
	}
	descs := make([]byte, m.l.descBlocks*blockSize)
	for g := range m.l.groups {
		if err := m.group(g, descs[g*descSize:][:descSize]); err != nil {
			return err
		}
	}
	for g := range m.l.groups {
		if !hasSuper(g) {
			continue
		}
		block, at := m.super(g), int64(g)*perGroup*blockSize
		if g == 0 { // the first 1,024 bytes are for a boot loader
			at += 1024
		}
		if _, err := m.f.WriteAt(block, at); err != nil {
			return err
		}
		if err := m.block(g*perGroup+1, descs); err != nil {
			return err
		}
	}
	if err := m.block(m.l.rootBlock, rootDirectory()); err != nil {
		return err
	}
	if err := m.inodes(); err != nil {
		return err
	}
	return m.block(m.l.journalStart, m.journalSuper())
}

// Flags of a group.
const (
	inodeUninit = 1
	blockUninit = 2
	inodeZeroed = 4 // a new file is zero
)

// group writes what a group needs of its bitmaps, and describes it.
func (m *maker) group(g uint32, desc []byte) error {
	start := g * perGroup
	bitmap := start
	if hasSuper(g) {
		bitmap += 1 + m.l.descBlocks
	}
	used, inodesUsed, dirs := m.l.overhead(g), uint32(0), uint16(0)
	flags := uint16(inodeUninit | blockUninit | inodeZeroed)
	if g == 0 {
		used, inodesUsed, dirs, flags = m.l.reservedFirst, firstInode-1, 1, inodeZeroed
	}
	if g == m.l.groups-1 {
		flags &^= blockUninit
	}
	if flags&blockUninit == 0 {
		b := make([]byte, blockSize)
		fill(b, 0, used)
		fill(b, m.l.length(g), perGroup) // beyond the end
		if err := m.block(bitmap, b); err != nil {
			return err
		}
	}
	if flags&inodeUninit == 0 {
		b := make([]byte, blockSize)
		fill(b, 0, inodesUsed)
		fill(b, m.l.inodesPer, 8*blockSize)
		if err := m.block(bitmap+1, b); err != nil {
			return err
		}
	}
	le.PutUint32(desc[0:], bitmap)
	le.PutUint32(desc[4:], bitmap+1)
	le.PutUint32(desc[8:], bitmap+2)
	le.PutUint16(desc[12:], uint16(m.l.length(g)-used))
	le.PutUint16(desc[14:], uint16(m.l.inodesPer-inodesUsed))
	le.PutUint16(desc[16:], dirs)
	le.PutUint16(desc[18:], flags)
	le.PutUint16(desc[28:], uint16(m.l.inodesPer-inodesUsed)) // never used, at the end of the table
	var num [4]byte
	le.PutUint32(num[:], g)
	le.PutUint16(desc[30:], crc16(crc16(crc16(0xffff, m.uuid[:]), num[:]), desc[:30]))
	return nil
}

// fill sets the bits of a bitmap from one to before another.
func fill(b []byte, from, to uint32) {
	for ; from < to; from++ {
		b[from/8] |= 1 << (from % 8)
	}
}

// crc16 is CRC-16/ARC with a start value, as the kernel's.
func crc16(crc uint16, b []byte) uint16 {
	for _, c := range b {
		crc ^= uint16(c)
		for range 8 {
			if crc&1 != 0 {
				crc = crc>>1 ^ 0xa001
			} else {
				crc >>= 1
			}
		}
	}
	return crc
}
