package frontend_test

import (
	"errors"
	"io"
	"net"
	"testing"

	"github.com/moby/buildkit/client/llb"
	gwpb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/pb"
)

// localDef is the definition of the build context.
func localDef(t *testing.T) *pb.Definition {
	t.Helper()
	def, err := llb.Local("context").Marshal(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return def.ToPB()
}

type listener struct {
	conns chan net.Conn
	done  chan struct{}
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *listener) Close() error   { close(l.done); return nil }
func (l *listener) Addr() net.Addr { return &net.UnixAddr{} }

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

func asExit(err error, exit **gwpb.ExitError) bool { return errors.As(err, exit) }
