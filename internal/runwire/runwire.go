// Package runwire is what `corten run` and its own engine say to each other in the one request that a run without a terminal takes.
//
// It owns the name of the protocol and the words on it. It promises that another engine, which knows nothing of it, takes the same request for what it also is: Docker's create.
//
//	corten                                                       engine, then monitor
//	POST /containers/create?…&stdin&stdout&stderr
//	     Upgrade: corten-run, a CreateRequest ─────────────────▶ makes the container
//	◀── 101, frame 4 Made ─────────────────────────────────────  and starts it            another engine: 201, and the client attaches, waits and starts
//	◀══ frames 1 and 2: the output ═════════════════════════════ (the monitor's)
//	═══ stdin, as it is ═══════════════════════════════════════▶
//	◀── frame 4 Ended ─────────────────────────────────────────  it ended (with --rm: it is gone), or never began
//
// Frames are those of Docker's attach: [stream][0 0 0][length, big endian][data]; stream 4 is JSON and ours.
package runwire

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// Protocol is the value of the Upgrade header.
const Protocol = "corten-run"

// Stream is the number of the frames that carry the words below.
const Stream = 4

// Limit bounds the data of such a frame, in bytes.
const Limit = 1 << 20

// Made is the first frame: Docker's answer to create.
type Made struct {
	ID       string `json:"Id"`
	Warnings []string
}

// Ended is the last frame. A run whose last frame is missing lost its engine.
type Ended struct {
	Code    int    // exit code; meaningless with Refused
	Error   string `json:",omitempty"` // what went wrong while the container ran, as Docker's wait tells it
	Refused int    `json:",omitempty"` // it did not start: the status that Docker's start answers with
	Message string `json:",omitempty"` // and its message
}

// Frame puts a word into a frame.
func Frame(word any) ([]byte, error) {
	data, err := json.Marshal(word)
	if err != nil {
		return nil, err
	}
	head := binary.BigEndian.AppendUint32([]byte{Stream, 0, 0, 0}, uint32(len(data)))
	return append(head, data...), nil
}

// ReadMade reads the first frame.
func ReadMade(r io.Reader) (made Made, err error) {
	var head [8]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return made, fmt.Errorf("first frame of a run: %w", err)
	}
	n := binary.BigEndian.Uint32(head[4:])
	if head[0] != Stream || n > Limit {
		return made, errors.New("first frame of a run: not one")
	}
	data := make([]byte, n)
	if _, err := io.ReadFull(r, data); err != nil {
		return made, fmt.Errorf("first frame of a run: %w", err)
	}
	if err := json.Unmarshal(data, &made); err != nil {
		return made, fmt.Errorf("first frame of a run: %w", err)
	}
	return made, nil
}
