package ship

// batch collects messages with memory of its own.
type batch struct {
	limit  int
	msgs   []Message
	places []place // behind each message
	arena  []byte
	left   *Message // did not fit in
	behind place
}

// maxBatch bounds the messages of a batch.
const maxBatch = 4096

func (b *batch) collect(c *joiner) error {
	b.msgs, b.places, b.arena = b.msgs[:0], b.places[:0], b.arena[:0]
	for len(b.msgs) < maxBatch {
		if b.left == nil {
			var m Message
			ok, err := c.next(&m, &b.behind)
			if err != nil {
				return err
			}
			if !ok {
				break
			}
			b.left = &m
		}
		if len(b.arena)+len(b.left.Line) > b.limit && len(b.msgs) > 0 {
			break
		}
		b.add()
	}
	return nil
}

// add copies the message into the arena, which must not move while messages point into it.
func (b *batch) add() {
	m := *b.left
	b.left = nil
	if need := len(b.arena) + len(m.Line); need > cap(b.arena) {
		grown := make([]byte, len(b.arena), max(need, min(2*cap(b.arena)+4<<10, b.limit)))
		copy(grown, b.arena)
		b.arena = grown // the old one lives on in the messages that point into it
	}
	at := len(b.arena)
	b.arena = append(b.arena, m.Line...)
	m.Line = b.arena[at:len(b.arena):len(b.arena)]
	b.msgs, b.places = append(b.msgs, m), append(b.places, b.behind)
}

func (b *batch) drop(n int) { b.msgs, b.places = b.msgs[n:], b.places[n:] }
