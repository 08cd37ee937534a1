package ext4

// Features. A kernel that does not know one of the second kind does not mount the file system, one of the third only for reading.
const (
	compat   = 0x4 | 0x8 | 0x20                     // has_journal, ext_attr, dir_index
	incompat = 0x2 | 0x40                           // filetype, extents
	roCompat = 0x1 | 0x2 | 0x8 | 0x10 | 0x20 | 0x40 // sparse_super, large_file, huge_file, uninit_bg, dir_nlink, extra_isize
)

// super is the super block, as the copy in group g has it.
func (m *maker) super(g uint32) []byte {
	b := make([]byte, 1024)
	u16 := func(at int, v uint16) { le.PutUint16(b[at:], v) }
	u32 := func(at int, v uint32) { le.PutUint32(b[at:], v) }
	u32(0, m.l.inodesPer*m.l.groups)
	u32(4, m.l.blocks)
	u32(12, m.l.freeBlocks)
	u32(16, m.l.inodesPer*m.l.groups-(firstInode-1))
	u32(24, 2) // blocks of 1024<<2 bytes
	u32(28, 2)
	u32(32, perGroup)
	u32(36, perGroup)
	u32(40, m.l.inodesPer)
	u32(48, m.now)  // written
	u16(54, 0xffff) // no check after so many mounts
	u16(56, 0xef53) // magic
	u16(58, 1)      // clean
	u16(60, 2)      // read-only after an error
	u32(64, m.now)  // checked
	u32(76, 1)      // revision
	u32(84, firstInode)
	u16(88, inodeSize)
	u16(90, uint16(g))
	u32(92, compat)
	u32(96, incompat)
	u32(100, roCompat)
	copy(b[104:], m.uuid[:])
	u32(224, journalInode)
	copy(b[236:], m.seed[:])
	b[252] = 1        // half MD4 for names
	b[253] = 1        // the journal's inode is kept below
	u32(256, 0x4|0x8) // user_xattr, acl
	u32(264, m.now)
	copy(b[268:], m.extent(m.l.journalStart, m.l.journal))
	u32(268+64, m.l.journal*blockSize)
	u16(348, 32) // bytes that every inode has beyond 128
	u16(350, 32)
	u32(352, 2) // names are hashed as unsigned characters
	return b
}

// extent is the map of a file that lies in one piece.
func (m *maker) extent(start, count uint32) []byte {
	b := make([]byte, 60)
	le.PutUint16(b[0:], 0xf30a)
	le.PutUint16(b[2:], 1)
	le.PutUint16(b[4:], 4)
	le.PutUint16(b[16:], uint16(count))
	le.PutUint32(b[20:], start)
	return b
}

// inodes writes the root directory's and the journal's.
func (m *maker) inodes() error {
	table := int64(m.l.overhead(0)-m.l.tableBlocks) * blockSize
	for _, f := range []struct {
		number       int64
		mode, links  uint16
		start, count uint32
	}{{rootInode, 0o40755, 2, m.l.rootBlock, 1}, {journalInode, 0o100600, 1, m.l.journalStart, m.l.journal}} {
		b := make([]byte, inodeSize)
		le.PutUint16(b[0:], f.mode)
		le.PutUint32(b[4:], f.count*blockSize)
		for _, at := range []int{8, 12, 16, 144} { // accessed, changed, modified, made
			le.PutUint32(b[at:], m.now)
		}
		le.PutUint16(b[26:], f.links)
		le.PutUint32(b[28:], f.count*(blockSize/512))
		le.PutUint32(b[32:], 0x80000) // has extents
		copy(b[40:], m.extent(f.start, f.count))
		le.PutUint16(b[128:], 32)
		if _, err := m.f.WriteAt(b, table+(f.number-1)*inodeSize); err != nil {
			return err
		}
	}
	return nil
}

func rootDirectory() []byte {
	b := make([]byte, blockSize)
	entry := func(at int, length uint16, name string) {
		le.PutUint32(b[at:], rootInode)
		le.PutUint16(b[at+4:], length)
		b[at+6], b[at+7] = byte(len(name)), 2 // a directory
		copy(b[at+8:], name)
	}
	entry(0, 12, ".")
	entry(12, blockSize-12, "..")
	return b
}

// journalSuper is the head of an empty journal (JBD2, big endian).
func (m *maker) journalSuper() []byte {
	b := make([]byte, 1024)
	be.PutUint32(b[0:], 0xc03b3998)
	be.PutUint32(b[4:], 4) // super block, version 2
	be.PutUint32(b[12:], blockSize)
	be.PutUint32(b[16:], m.l.journal)
	be.PutUint32(b[20:], 1) // first block of the log
	be.PutUint32(b[24:], 1) // first transaction
	copy(b[48:], m.uuid[:])
	be.PutUint32(b[64:], 1) // users
	return b
}
