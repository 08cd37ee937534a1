package cli

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/moby/moby/api/types/container"

	"corten.dev/corten/internal/cli/engineapi"
	"corten.dev/corten/internal/http1"
	"corten.dev/corten/internal/runwire"
)

// runAtOnce asks for a run without a terminal in one request, which is drawn in [runwire]. An engine that does not know it has made the container: then the rest follows as elsewhere.
func (j *attachment) runAtOnce(ctx context.Context, o *ctrFlags, req *container.CreateRequest) (err error) {
	var conn *http1.Upgraded
	j.id, err = j.app.making(ctx, j.api, o, req, func(r engineapi.Request) (made runwire.Made, err error) {
		for i, pairs := 0, j.attachQuery(); i < len(pairs); i += 2 {
			if pairs[i+1] != "" {
				r.Query.Set(pairs[i], pairs[i+1])
			}
		}
		up, resp, err := j.api.Upgrade(ctx, r, runwire.Protocol)
		if err != nil {
			return made, err
		}
		if up == nil {
			return made, r.Read(resp, &made)
		}
		conn = up
		return runwire.ReadMade(up)
	})
	if err != nil {
		if conn != nil {
			conn.Close()
		}
		return err
	}
	if conn == nil {
		return j.run(ctx)
	}
	if j.sigProxy {
		defer j.app.proxySignals(ctx, j.api, j.id)()
	}
	s := j.session(conn)
	s.atOnce = true
	if err := j.streamed(s.run(ctx)); err != nil {
		return err
	}
	return j.outcome(ctx, s.last)
}

// outcome makes the last word of a run our own exit code. When there is none the engine went away, while the container's output did not: the next engine knows how it ended.
func (j *attachment) outcome(ctx context.Context, last []byte) error {
	if len(last) == 0 {
		if j.rm {
			return &exitError{code: 125, text: fmt.Sprintf("error waiting for container: the engine went away while %s ran", j.id)}
		}
		w := j.waitFor(ctx, "not-running")
		if w.err != nil {
			return w.err
		}
		defer w.resp.Body.Close()
		return exitOf(w)
	}
	var end runwire.Ended
	if err := json.Unmarshal(last, &end); err != nil {
		return &exitError{code: 125, text: fmt.Sprintf("error waiting for container: %v", err)}
	}
	switch {
	case end.Refused != 0:
		return &engineapi.Error{Status: end.Refused, Message: end.Message}
	case end.Error != "":
		return &exitError{code: 125, text: "error waiting for container: " + end.Error}
	case end.Code != 0:
		return &exitError{code: end.Code}
	}
	return nil
}
