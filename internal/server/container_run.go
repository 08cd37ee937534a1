package server

import (
	"context"
	"net"
	"net/http"

	wire "github.com/moby/moby/api/types/container"

	"corten.dev/corten/internal/engine/containers"
	"corten.dev/corten/internal/runwire"
)

// runs tells whether a request for create is one for a run (see [runwire]). One with a terminal is not: its stream has no frames, and no room for a last word.
func runs(r *request, req *containers.CreateRequest) bool {
	return r.Header.Get("Upgrade") == runwire.Protocol && !req.Config.Tty && r.TLS == nil
}

// containerRun is the rest of `corten run`, on the connection of its create: the header, what was made, the output (the monitor's), and how it ended.
func (s *Server) containerRun(w http.ResponseWriter, r *request, made wire.CreateResponse) error {
	first, err := runwire.Frame(runwire.Made{ID: made.ID, Warnings: made.Warnings})
	if err != nil {
		return err
	}
	h := &hijack{w: w, r: r}
	opts := attachOptions(r)
	opts.Hijack = func(tty bool) (net.Conn, []byte, error) {
		header := "HTTP/1.1 101 UPGRADED\r\nContent-Type: " + streamType(r.version, tty) + "\r\nConnection: Upgrade\r\nUpgrade: " + runwire.Protocol + "\r\n\r\n"
		return h.takeWith(tty, append([]byte(header), first...))
	}
	ctx, cancel := context.WithCancel(r.steady())
	defer cancel()
	defer context.AfterFunc(s.streams, cancel)()
	return s.session(h, s.Containers.Run(ctx, made.ID, opts, lastWord))
}

// lastWord is how a run ended, or why it did not begin.
func lastWord(end containers.Ended, refused error) []byte {
	word := runwire.Ended{Code: end.Code, Error: end.Err}
	if refused != nil {
		word = runwire.Ended{Refused: status(refused), Message: refused.Error()}
	}
	frame, err := runwire.Frame(word)
	if err != nil {
		return nil // two numbers and two texts
	}
	return frame
}
