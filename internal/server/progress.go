package server

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types"
	"github.com/moby/moby/api/types/jsonstream"
)

// progress sends Docker's JSON messages: what happens, how far it is, what came of it. It begins the answer with the first message.
type progress struct {
	out   lazyStream
	enc   *json.Encoder
	quiet bool
}

// message is one line; the fields "error" and "progress" are for clients that do not know errorDetail and progressDetail.
type message struct {
	jsonstream.Message
	OldProgress string `json:"progress,omitempty"`
	OldError    string `json:"error,omitempty"`
}

func newProgress(w http.ResponseWriter, quiet bool) *progress {
	p := &progress{out: lazyStream{w: w, contentType: types.MediaTypeJSON}, quiet: quiet}
	p.enc = json.NewEncoder(&p.out)
	p.enc.SetEscapeHTML(false)
	return p
}

func (p *progress) send(m message) {
	_ = p.enc.Encode(m) // a client that left is found at the next read of its body, and by finish
}

// update is an [image.Progress].
func (p *progress) update(id, status string, current, total int64) {
	if p.quiet {
		return
	}
	m := message{Message: jsonstream.Message{ID: id, Status: status, Progress: &jsonstream.Progress{}}}
	if current > 0 || total > 0 {
		m.Progress = &jsonstream.Progress{Current: current, Total: total}
		m.OldProgress = bar(current, total)
	}
	p.send(m)
}

func (p *progress) say(text string) { p.send(message{Message: jsonstream.Message{Stream: text}}) }

func (p *progress) status(id, text string) {
	p.send(message{Message: jsonstream.Message{ID: id, Status: text}})
}

// finish ends the answer. An error after the first message is a message too, because the status has been sent.
func (p *progress) finish(err error) error {
	if err != nil && p.out.st != nil {
		p.send(message{Message: jsonstream.Message{Error: &jsonstream.Error{Message: err.Error()}}, OldError: err.Error()})
		err = nil
	}
	return p.out.finish(err)
}

// bar draws "[=====>     ]  1.5MB/3MB" as Docker does, for clients that show what they are given.
func bar(current, total int64) string {
	if total <= 0 || current > total {
		return fmt.Sprintf("%8v", units.HumanSize(float64(current)))
	}
	const width = 50
	n := int(current * width / total)
	return "[" + strings.Repeat("=", n) + ">" + strings.Repeat(" ", width-n) + "] " + fmt.Sprintf("%8v/%v", units.HumanSize(float64(current)), units.HumanSize(float64(total)))
}
