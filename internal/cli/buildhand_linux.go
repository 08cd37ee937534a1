package cli

import (
	"errors"
	"net"
	"syscall"
)

// canHand: descriptors can be handed to an engine on this host.
const canHand = true

// WriteWith writes p with a descriptor beside it.
func (c buildCarrier) WriteWith(p []byte, fd uintptr) error {
	nc, ok := c.Conn.(*net.UnixConn)
	if !ok {
		return errors.ErrUnsupported
	}
	n, _, err := nc.WriteMsgUnix(p, syscall.UnixRights(int(fd)), nil)
	if err == nil && n < len(p) {
		_, err = nc.Write(p[n:])
	}
	return err
}

// Take is for the engine's side.
func (c buildCarrier) Take() (uintptr, bool) { return 0, false }
