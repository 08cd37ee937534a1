package engineapi

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"syscall"
	"testing"
)

// attached is a connection as http1 hands it over.
type attached struct{ net.Conn }

func (a attached) Direct() net.Conn { return a.Conn }

// wired gives the two ends of a unix socket, and of a pipe such as a shell makes (one that blocks).
func wired(t testing.TB) (engine, client net.Conn, r, w *os.File) {
	t.Helper()
	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ends := [2]net.Conn{}
	for i, fd := range pair {
		f := os.NewFile(uintptr(fd), "socket")
		if ends[i], err = net.FileConn(f); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	var p [2]int
	if err := syscall.Pipe2(p[:], syscall.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	r, w = os.NewFile(uintptr(p[0]), "read end"), os.NewFile(uintptr(p[1]), "write end")
	t.Cleanup(func() { ends[0].Close(); ends[1].Close(); r.Close(); w.Close() })
	return ends[0], ends[1], r, w
}

// Frames of all sizes in any order: whatever is spliced and whatever is copied, the pipe gets the bytes of its stream in order, and the other stream the rest.
func TestDemuxIntoAPipe(t *testing.T) {
	engine, client, r, w := wired(t)
	if newSplicer(w, attached{client}) == nil {
		t.Fatal("a pipe and a unix socket are not spliced")
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	var out, errs, wire []byte
	for range 400 {
		data := make([]byte, 1+rnd.IntN([]int{8, 100, 20 << 10, 70 << 10, 300 << 10}[rnd.IntN(5)]))
		for i := range data {
			data[i] = byte(rnd.Uint32())
		}
		stream := byte(1 + rnd.IntN(8)/7)
		if wire = append(wire, frame(stream, string(data))...); stream == 1 {
			out = append(out, data...)
		} else {
			errs = append(errs, data...)
		}
	}
	go func() {
		for b := wire; len(b) > 0; {
			n := min(len(b), 1+rnd.IntN(200<<10))
			if _, err := engine.Write(b[:n]); err != nil {
				break
			}
			b = b[n:]
		}
		engine.Close()
	}()
	got := make(chan []byte)
	go func() {
		b, _ := io.ReadAll(r)
		got <- b
	}()
	var errw bytes.Buffer
	if err := Demux(w, &errw, attached{client}); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if !bytes.Equal(<-got, out) || !bytes.Equal(errw.Bytes(), errs) {
		t.Error("bytes are missing, or out of order")
	}
}

// A stream that breaks off within a spliced frame, and a pipe that nobody reads any more, are told as they are without splicing.
func TestDemuxIntoAPipeTellsFailures(t *testing.T) {
	engine, client, r, w := wired(t)
	done := make(chan error)
	go func() { done <- Demux(w, io.Discard, attached{client}) }()
	go io.Copy(io.Discard, r)
	big := []byte(frame(1, string(make([]byte, 200<<10))))
	engine.Write(big)
	engine.Write(big[:100<<10])
	engine.Close()
	if err := <-done; !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("broken off: %v", err)
	}

	engine, client, r, w = wired(t)
	go func() { done <- Demux(w, io.Discard, attached{client}) }()
	go func() {
		for {
			if _, err := engine.Write(big); err != nil {
				return
			}
		}
	}()
	io.ReadFull(r, make([]byte, 300<<10))
	r.Close()
	if err := <-done; !errors.Is(err, syscall.EPIPE) {
		t.Errorf("nobody reads: %v", err)
	}
}

// BenchmarkDemuxIntoAPipe is the way of `corten run … | cat`: frames as the monitor sends them.
func BenchmarkDemuxIntoAPipe(b *testing.B) {
	engine, client, r, w := wired(b)
	big := []byte(frame(1, string(make([]byte, 160<<10))))
	b.SetBytes(int64(len(big)))
	go io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{r}, make([]byte, 256<<10))
	done := make(chan error)
	go func() { done <- Demux(w, io.Discard, attached{client}) }()
	for b.Loop() {
		if _, err := engine.Write(big); err != nil {
			b.Fatal(err)
		}
	}
	engine.Close()
	if err := <-done; err != nil {
		b.Fatal(err)
	}
}
