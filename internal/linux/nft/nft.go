// Package nft changes nftables by netlink, many changes in one transaction of the kernel.
//
// It owns the encoding of tables, chains, sets, maps, their elements and rules; it knows only the expressions that Corten's rules are made of. It
// promises that a transaction is done as a whole or not at all, and that it touches nothing but what its requests name.
//
// A transaction on the wire, one sendto:
//
//	BATCH_BEGIN │ NEWTABLE, NEWCHAIN, NEWSET, NEWSETELEM, NEWRULE … (the last with NLM_F_ACK) │ BATCH_END
package nft

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
	"sync"
	"time"

	"corten.dev/corten/internal/linux/netlink"
	"golang.org/x/sys/unix"
)

const subsys = unix.NFNL_SUBSYS_NFTABLES << 8

// Tx is one transaction, built step by step. The zero value is ready.
type Tx struct {
	// Family is that of the tables of the steps to come: unix.NFPROTO_BRIDGE …; 0 is inet.
	Family uint8

	b     netlink.Batch
	setID uint32
}

func header(family uint8, res uint16) []byte {
	p := []byte{family, unix.NFNETLINK_V0, 0, 0}
	binary.BigEndian.PutUint16(p[2:], res)
	return p
}

func (t *Tx) begin(name string, typ, flags uint16) {
	if t.b.Len() == 0 {
		t.b.Begin("begin transaction", unix.NFNL_MSG_BATCH_BEGIN, 0, header(0, unix.NFNL_SUBSYS_NFTABLES))
		t.b.End()
	}
	t.b.Begin(name, subsys|typ, flags, header(familyOr(t.Family), 0))
}

func familyOr(family uint8) uint8 {
	if family == 0 {
		return unix.NFPROTO_INET
	}
	return family
}

// Len is the number of changes asked for.
func (t *Tx) Len() int { return max(0, t.b.Len()-1) }

// AddTable makes the table if it is not there.
func (t *Tx) AddTable(name string) {
	t.begin("add table "+name, unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE)
	t.b.String(unix.NFTA_TABLE_NAME, name)
	t.b.BE32(unix.NFTA_TABLE_FLAGS, 0)
	t.b.End()
}

// DelTable removes the table with all that is in it; it must exist.
func (t *Tx) DelTable(name string) {
	t.begin("delete table "+name, unix.NFT_MSG_DELTABLE, 0)
	t.b.String(unix.NFTA_TABLE_NAME, name)
	t.b.End()
}

// Chain is a chain; Type, Hook and Priority are for base chains, whose policy is accept.
type Chain struct {
	Name     string
	Type     string // filter, nat; empty: not a base chain
	Hook     uint32
	Priority int32
}

// AddChain makes the chain if it is not there.
func (t *Tx) AddChain(table string, c Chain) {
	t.begin("add chain "+c.Name, unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE)
	t.b.String(unix.NFTA_CHAIN_TABLE, table)
	t.b.String(unix.NFTA_CHAIN_NAME, c.Name)
	if c.Type != "" {
		t.b.Nest(unix.NFTA_CHAIN_HOOK, func() {
			t.b.BE32(unix.NFTA_HOOK_HOOKNUM, c.Hook)
			t.b.BE32(unix.NFTA_HOOK_PRIORITY, uint32(c.Priority))
		})
		t.b.BE32(unix.NFTA_CHAIN_POLICY, 1) // NF_ACCEPT
		t.b.String(unix.NFTA_CHAIN_TYPE, c.Type)
	}
	t.b.End()
}

// FlushChain removes the rules of a chain.
func (t *Tx) FlushChain(table, chain string) {
	t.begin("flush chain "+chain, unix.NFT_MSG_DELRULE, 0)
	t.b.String(unix.NFTA_RULE_TABLE, table)
	t.b.String(unix.NFTA_RULE_CHAIN, chain)
	t.b.End()
}

// Type is what a part of a set's key or a map's data is; the number is nft's own for listings, the size its length in registers.
type Type struct {
	id   uint32
	size uint32
}

// The types in use.
var (
	IPv4    = Type{7, 4}
	IPv6    = Type{8, 16}
	Proto   = Type{12, 1}
	Service = Type{13, 2}
	Ether   = Type{9, 6}
	IfName  = Type{41, 16}
)

func typeOf(parts []Type) (id, size uint32) {
	for _, p := range parts {
		id = id<<6 | p.id
		if len(parts) == 1 {
			return p.id, p.size
		}
		size += (p.size + 3) &^ 3
	}
	return id, size
}

// Set is a set, or a map when Data is given. More than one part makes a concatenation.
type Set struct {
	Name string
	Key  []Type
	Data []Type
	// Ranges says that each element is a range in every part of its key (Elem.Key to Elem.End); only for concatenations. The kernel copies such a set with every change.
	Ranges bool
	// Timeout says that elements go by themselves: Elem.Timeout.
	Timeout bool
	// Counters says that each element counts the packets that meet it.
	Counters bool
}

// AddSet makes the set if it is not there.
func (t *Tx) AddSet(table string, s Set) {
	t.setID++
	t.begin("add set "+s.Name, unix.NFT_MSG_NEWSET, unix.NLM_F_CREATE)
	t.b.String(unix.NFTA_SET_TABLE, table)
	t.b.String(unix.NFTA_SET_NAME, s.Name)
	var flags uint32
	if len(s.Data) > 0 {
		flags |= unix.NFT_SET_MAP
	}
	if len(s.Key) > 1 {
		flags |= 0x80 // NFT_SET_CONCAT
	}
	if s.Ranges {
		flags |= unix.NFT_SET_INTERVAL
	}
	if s.Timeout {
		flags |= unix.NFT_SET_TIMEOUT
	}
	id, size := typeOf(s.Key)
	t.b.BE32(unix.NFTA_SET_FLAGS, flags)
	t.b.BE32(unix.NFTA_SET_KEY_TYPE, id)
	t.b.BE32(unix.NFTA_SET_KEY_LEN, size)
	if len(s.Data) > 0 {
		id, size := typeOf(s.Data)
		t.b.BE32(unix.NFTA_SET_DATA_TYPE, id)
		t.b.BE32(unix.NFTA_SET_DATA_LEN, size)
	}
	t.b.BE32(unix.NFTA_SET_ID, t.setID)
	if s.Counters {
		counter := Counter()
		t.b.Nest(0x11 /* NFTA_SET_EXPR */, func() {
			t.b.String(unix.NFTA_EXPR_NAME, counter.name)
			t.b.Nest(unix.NFTA_EXPR_DATA, func() { counter.fill(&t.b) })
		})
	}
	if len(s.Key) > 1 {
		t.b.Nest(unix.NFTA_SET_DESC, func() {
			t.b.Nest(2 /* NFTA_SET_DESC_CONCAT */, func() {
				for _, k := range s.Key {
					t.b.Nest(unix.NFTA_LIST_ELEM, func() { t.b.BE32(1 /* NFTA_SET_FIELD_LEN */, k.size) })
				}
			})
		})
	}
	// What nft itself notes, so that listings show names in their right byte order: keys are in host order only for names.
	order := uint32(2)
	if len(s.Key) == 1 && s.Key[0] == IfName {
		order = 1
	}
	t.b.Bytes(unix.NFTA_SET_USERDATA, userdata(order, len(s.Data) > 0))
	t.b.End()
}

func userdata(order uint32, isMap bool) []byte {
	p := append([]byte{0, 4}, binary.NativeEndian.AppendUint32(nil, order)...) // NFTNL_UDATA_SET_KEYBYTEORDER
	if isMap {
		p = append(append(p, 1, 4), binary.NativeEndian.AppendUint32(nil, 2)...) // NFTNL_UDATA_SET_DATABYTEORDER
	}
	return p
}

// FlushSet removes the elements of a set.
func (t *Tx) FlushSet(table, set string) {
	t.begin("flush set "+set, unix.NFT_MSG_DELSETELEM, 0)
	t.b.String(unix.NFTA_SET_ELEM_LIST_TABLE, table)
	t.b.String(unix.NFTA_SET_ELEM_LIST_SET, set)
	t.b.End()
}

// Elem is an element: its key, the key's end in a set of ranges, and its data when the set is a map. All are made by [Cat].
type Elem struct {
	Key, End, Data []byte
	// Timeout is how long it lives in a set with Timeout; one that is there already keeps its own. Parts of a millisecond do not count.
	Timeout time.Duration
	// Packets and Bytes are what was counted, in a set with Counters.
	Packets, Bytes uint64
	// Note shows in listings as the element's comment. One of more than 250 bytes is left out: what an element is made of, and its length, is counted in one byte there. It stays that of whoever made the element.
	Note string
}

// Cat concatenates parts the way the kernel lays them into registers: each begins at a multiple of four bytes.
func Cat(parts ...[]byte) []byte {
	if len(parts) == 1 {
		return parts[0]
	}
	var p []byte
	for _, part := range parts {
		p = append(p, part...)
		for len(p)&3 != 0 {
			p = append(p, 0)
		}
	}
	return p
}

// Name is the key of an interface.
func Name(s string) []byte {
	p := make([]byte, unix.IFNAMSIZ)
	copy(p, s)
	return p
}

// Port is a port number as a key or datum.
func Port(n uint16) []byte { return binary.BigEndian.AppendUint16(nil, n) }

const maxNote = 250

// fit is how many elements go into one message, whose nest must stay below the 64 KiB that its length can say.
func fit(elems []Elem) int {
	const room, heads = 60 << 10, 64 // heads: what is around one element's parts, and more
	size := 0
	for i, e := range elems {
		if size += heads + len(e.Key) + len(e.End) + len(e.Data) + len(e.Note); size > room {
			return i
		}
	}
	return len(elems)
}

// AddElems adds elements; one that is there already with the same data is no error.
func (t *Tx) AddElems(table, set string, elems []Elem) {
	t.elems("add to "+set, unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE, table, set, elems)
}

// DelElems removes elements; each must be there.
func (t *Tx) DelElems(table, set string, elems []Elem) {
	t.elems("delete from "+set, unix.NFT_MSG_DELSETELEM, 0, table, set, elems)
}

func (t *Tx) elems(what string, typ, flags uint16, table, set string, elems []Elem) {
	for len(elems) > 0 {
		part := elems[:fit(elems)]
		elems = elems[len(part):]
		t.begin(what, typ, flags)
		t.b.String(unix.NFTA_SET_ELEM_LIST_TABLE, table)
		t.b.String(unix.NFTA_SET_ELEM_LIST_SET, set)
		t.b.Nest(unix.NFTA_SET_ELEM_LIST_ELEMENTS, func() {
			for _, e := range part {
				t.b.Nest(unix.NFTA_LIST_ELEM, func() {
					t.b.Nest(unix.NFTA_SET_ELEM_KEY, func() { t.b.Bytes(unix.NFTA_DATA_VALUE, e.Key) })
					if len(e.End) > 0 {
						t.b.Nest(10 /* NFTA_SET_ELEM_KEY_END */, func() { t.b.Bytes(unix.NFTA_DATA_VALUE, e.End) })
					}
					if len(e.Data) > 0 && typ == unix.NFT_MSG_NEWSETELEM {
						t.b.Nest(unix.NFTA_SET_ELEM_DATA, func() { t.b.Bytes(unix.NFTA_DATA_VALUE, e.Data) })
					}
					if e.Timeout > 0 && typ == unix.NFT_MSG_NEWSETELEM {
						t.b.BE64(unix.NFTA_SET_ELEM_TIMEOUT, uint64(e.Timeout.Milliseconds()))
					}
					if e.Note != "" && len(e.Note) <= maxNote && typ == unix.NFT_MSG_NEWSETELEM {
						t.b.Bytes(unix.NFTA_SET_ELEM_USERDATA, comment(e.Note))
					}
				})
			}
		})
		t.b.End()
	}
}

// comment is what nft itself notes of a rule or an element, with the number 0: a text that ends in a zero byte.
func comment(text string) []byte {
	return append([]byte{0, byte(len(text) + 1)}, append([]byte(text), 0)...)
}

// readComment is the text of one; "" where there is none.
func readComment(p []byte) string {
	for len(p) >= 2 && len(p) >= 2+int(p[1]) {
		if p[0] == 0 {
			return strings.TrimSuffix(string(p[2:2+int(p[1])]), "\x00")
		}
		p = p[2+int(p[1]):]
	}
	return ""
}

// AddRule appends a rule. The note shows in listings as the rule's comment.
func (t *Tx) AddRule(table, chain, note string, exprs ...Expr) {
	t.begin("add rule to "+chain, unix.NFT_MSG_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_APPEND)
	t.b.String(unix.NFTA_RULE_TABLE, table)
	t.b.String(unix.NFTA_RULE_CHAIN, chain)
	t.b.Nest(unix.NFTA_RULE_EXPRESSIONS, func() {
		for _, e := range exprs {
			t.b.Nest(unix.NFTA_LIST_ELEM, func() {
				t.b.String(unix.NFTA_EXPR_NAME, e.name)
				t.b.Nest(unix.NFTA_EXPR_DATA, func() { e.fill(&t.b) })
			})
		}
	})
	if note != "" {
		t.b.Bytes(unix.NFTA_RULE_USERDATA, comment(note))
	}
	t.b.End()
}

// Conns holds sockets for transactions in the namespace of the thread that used it first.
type Conns struct {
	pool  netlink.Pool
	ports sync.Map // numbers of the sockets that were used, so that news about our own changes are known; a few in all
}

// Owns says whether news come from a change made through c.
func (c *Conns) Owns(port uint32) bool {
	_, ok := c.ports.Load(port)
	return ok
}

// NewConns makes an empty pool of sockets.
func NewConns() *Conns { return &Conns{pool: netlink.Pool{Proto: unix.NETLINK_NETFILTER}} }

// Close closes the sockets.
func (c *Conns) Close() error { return c.pool.Close() }

// Commit hands the transaction to the kernel. With an error nothing of it was done.
func (c *Conns) Commit(t *Tx) error {
	if t.Len() == 0 {
		return nil
	}
	conn, err := c.pool.Take()
	if err != nil {
		return err
	}
	c.ports.LoadOrStore(conn.Port(), struct{}{})
	if t.b.Size() > 100<<10 {
		conn.SetBuffers(t.b.Size() + 1<<20)
	}
	if err := conn.Transact(&t.b, unix.NFNL_MSG_BATCH_END, header(0, unix.NFNL_SUBSYS_NFTABLES)); err != nil {
		c.pool.Give(conn) // its answers were all read
		return Explain(err)
	}
	c.pool.Give(conn)
	return nil
}

// HasRules says whether a chain is there and has rules.
func (c *Conns) HasRules(table, chain string) (bool, error) {
	conn, err := c.pool.Take()
	if err != nil {
		return false, err
	}
	var b netlink.Batch
	b.Begin("list rules of "+chain, subsys|unix.NFT_MSG_GETRULE, 0, header(unix.NFPROTO_INET, 0))
	b.String(unix.NFTA_RULE_TABLE, table)
	b.String(unix.NFTA_RULE_CHAIN, chain)
	b.End()
	found := false
	err = conn.Dump(&b, func(typ uint16, _ []byte) error {
		found = found || typ == subsys|unix.NFT_MSG_NEWRULE
		return nil
	})
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return false, errors.Join(err, conn.Close())
	}
	c.pool.Give(conn)
	return found, nil
}

// Elems lists a set without ranges, of a table of a family (see Tx.Family); Timeout is what is left of it.
func (c *Conns) Elems(family uint8, table, set string) (all []Elem, err error) {
	conn, err := c.pool.Take()
	if err != nil {
		return nil, err
	}
	var b netlink.Batch
	b.Begin("list set "+set, subsys|unix.NFT_MSG_GETSETELEM, 0, header(familyOr(family), 0))
	b.String(unix.NFTA_SET_ELEM_LIST_TABLE, table)
	b.String(unix.NFTA_SET_ELEM_LIST_SET, set)
	b.End()
	var bad error
	walk := func(p []byte, typ uint16, fn func(data []byte)) {
		bad = errors.Join(bad, netlink.Attrs(p, func(t uint16, data []byte) {
			if t == typ {
				fn(data)
			}
		}))
	}
	err = conn.Dump(&b, func(_ uint16, p []byte) error {
		if len(p) < 4 {
			return netlink.ErrMalformed
		}
		walk(p[4:], unix.NFTA_SET_ELEM_LIST_ELEMENTS, func(list []byte) {
			walk(list, unix.NFTA_LIST_ELEM, func(elem []byte) {
				e := Elem{}
				walk(elem, unix.NFTA_SET_ELEM_KEY, func(key []byte) {
					walk(key, unix.NFTA_DATA_VALUE, func(v []byte) { e.Key = bytes.Clone(v) })
				})
				walk(elem, unix.NFTA_SET_ELEM_EXPIRATION, func(v []byte) {
					if len(v) == 8 {
						e.Timeout = time.Duration(binary.BigEndian.Uint64(v)) * time.Millisecond
					}
				})
				walk(elem, unix.NFTA_SET_ELEM_USERDATA, func(v []byte) { e.Note = readComment(v) })
				walk(elem, unix.NFTA_SET_ELEM_EXPR, func(expr []byte) {
					walk(expr, unix.NFTA_EXPR_DATA, func(counter []byte) {
						walk(counter, unix.NFTA_COUNTER_PACKETS, number(&e.Packets))
						walk(counter, unix.NFTA_COUNTER_BYTES, number(&e.Bytes))
					})
				})
				all = append(all, e)
			})
		})
		return bad
	})
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	c.pool.Give(conn)
	return all, nil
}

// number reads a 64-bit number.
func number(to *uint64) func([]byte) {
	return func(v []byte) {
		if len(v) == 8 {
			*to = binary.BigEndian.Uint64(v)
		}
	}
}

// Explain says what to enable where nftables is missing.
func Explain(err error) error {
	if errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) {
		return &missing{err}
	}
	return err
}

type missing struct{ err error }

func (m *missing) Error() string {
	return "the kernel has no nftables (enable CONFIG_NF_TABLES, CONFIG_NF_TABLES_INET, CONFIG_NFT_NAT, CONFIG_NFT_MASQ and CONFIG_NFT_FIB_INET, or load nf_tables): " + m.err.Error()
}
func (m *missing) Unwrap() error { return m.err }
