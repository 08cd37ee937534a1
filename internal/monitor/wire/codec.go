package wire

// codec reads or writes fields; one walk over a message serves both, so that the two sides cannot differ.
type codec struct {
	b       []byte
	writing bool
	bad     bool
}

func (c *codec) take(n int) []byte {
	if c.bad || n < 0 || n > len(c.b) {
		c.bad = true
		return nil
	}
	b := c.b[:n]
	c.b = c.b[n:]
	return b
}

func (c *codec) number(v uint64, size int) uint64 {
	if c.writing {
		for i := 0; i < size; i++ {
			c.b = append(c.b, byte(v>>(8*i)))
		}
		return v
	}
	v = 0
	for i, x := range c.take(size) {
		v |= uint64(x) << (8 * i)
	}
	return v
}

func (c *codec) u8(v *uint8)   { *v = uint8(c.number(uint64(*v), 1)) }
func (c *codec) u16(v *uint16) { *v = uint16(c.number(uint64(*v), 2)) }
func (c *codec) u32(v *uint32) { *v = uint32(c.number(uint64(*v), 4)) }
func (c *codec) i64(v *int64)  { *v = int64(c.number(uint64(*v), 8)) }

func (c *codec) bytes(v *[]byte) {
	n := uint32(c.number(uint64(len(*v)), 4))
	if c.writing {
		c.b = append(c.b, *v...)
		return
	}
	if uint64(n) > uint64(len(c.b)) {
		c.bad = true
	}
	*v = c.take(int(n))
}

func (c *codec) string(v *string) {
	if c.writing {
		c.number(uint64(len(*v)), 4)
		c.b = append(c.b, *v...)
		return
	}
	var b []byte
	c.bytes(&b)
	*v = string(b)
}

func (c *codec) attached(v *[]Attachment) {
	n := int(c.number(uint64(len(*v)), 4))
	if !c.writing {
		if n < 0 || n > MaxFiles {
			c.bad = true
			return
		}
		*v = nil
	}
	for i := 0; i < n && !c.bad; i++ {
		var a Attachment
		if c.writing {
			a = (*v)[i]
		}
		c.u32(&a.Number)
		c.u8(&a.Flags)
		c.bytes(&a.Preread)
		c.bytes(&a.DetachKeys)
		if !c.writing {
			*v = append(*v, a)
		}
	}
}

// Append adds the encoded message to b.
func Append(b []byte, m *Message) []byte {
	c := codec{b: append(b, byte(m.Kind)), writing: true}
	c.u32(&m.ID)
	m.fields(&c)
	return c.b
}

// Decode reads one packet. Byte slices of m point into b. It reports whether the packet was a whole message of a known kind.
func Decode(b []byte, m *Message) bool {
	*m = Message{}
	c := codec{b: b}
	c.u8((*uint8)(&m.Kind))
	if m.Kind == 0 || m.Kind >= kinds {
		return false
	}
	c.u32(&m.ID)
	m.fields(&c)
	return !c.bad && len(c.b) == 0
}
