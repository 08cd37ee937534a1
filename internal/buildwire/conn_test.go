package buildwire_test

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"sync"
	"testing"

	"corten.dev/corten/internal/buildwire"
	"corten.dev/corten/internal/errs"
)

// pair joins a door and a client whose answers are given by accept.
func pair(t *testing.T, accept func(*buildwire.Stream, buildwire.Ask), report func(buildwire.Kind, []byte) error) *buildwire.Conn {
	t.Helper()
	a, b := net.Pipe()
	door, client := buildwire.NewDoor(a), buildwire.NewClient(b, accept, report)
	var wg sync.WaitGroup
	for _, c := range []*buildwire.Conn{door, client} {
		wg.Add(1)
		go func() { defer wg.Done(); _ = c.Run() }()
	}
	t.Cleanup(func() { door.Close(); client.Close(); wg.Wait() })
	return door
}

func TestQuestionsAndAnswers(t *testing.T) {
	big := bytes.Repeat([]byte("0123456789abcdef"), 300_000)
	door := pair(t, func(s *buildwire.Stream, ask buildwire.Ask) {
		defer s.Close()
		switch ask.What {
		case buildwire.AskSecret:
			if ask.Name != "key" {
				s.Fail(errs.New(errs.NotFound, "secret %s: not found", ask.Name))
				return
			}
			if _, err := s.Write(big); err != nil {
				t.Error(err)
			}
			s.End()
		case buildwire.AskSSH:
			io.Copy(s, s)
			s.End()
		case buildwire.AskCredentials:
			s.Answer(buildwire.Login{User: "me", Secret: "s"})
			s.End()
		}
	}, nil)
	var wg sync.WaitGroup
	for range 8 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			s, err := door.Ask(buildwire.Ask{What: buildwire.AskSecret, Name: "key"})
			if err != nil {
				t.Error(err)
				return
			}
			defer s.Close()
			got, err := io.ReadAll(s)
			if err != nil || !bytes.Equal(got, big) {
				t.Errorf("got %d bytes, %v", len(got), err)
			}
		}()
	}
	wg.Wait()

	s, err := door.Ask(buildwire.Ask{What: buildwire.AskSecret, Name: "none"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(s); !errors.Is(err, errs.NotFound) || err.Error() != "secret none: not found" {
		t.Errorf("a refusal came as %v", err)
	}
	s.Close()

	s, err = door.Ask(buildwire.Ask{What: buildwire.AskCredentials, Name: "docker.io"})
	if err != nil {
		t.Fatal(err)
	}
	var login buildwire.Login
	if err := s.Heard(&login); err != nil || login.User != "me" {
		t.Errorf("%+v %v", login, err)
	}
	s.Close()

	s, err = door.Ask(buildwire.Ask{What: buildwire.AskSSH, Name: "default"})
	if err != nil {
		t.Fatal(err)
	}
	go func() { s.Write(big); s.End() }()
	if got, err := io.ReadAll(s); err != nil || !bytes.Equal(got, big) {
		t.Errorf("echo of %d bytes, %v", len(got), err)
	}
	s.Close()
}

// A stream that nobody reads keeps its window and stops; the others go on.
func TestOneStreamHoldsUpNoOther(t *testing.T) {
	stop := make(chan struct{})
	door := pair(t, func(s *buildwire.Stream, ask buildwire.Ask) {
		defer s.Close()
		if ask.What == buildwire.AskFile {
			<-stop // never reads
			return
		}
		s.Answer(buildwire.Size{Size: 7})
		s.End()
	}, nil)
	stuck, err := door.Ask(buildwire.Ask{What: buildwire.AskFile})
	if err != nil {
		t.Fatal(err)
	}
	wrote := make(chan error, 1)
	go func() {
		_, err := stuck.Write(make([]byte, 2*buildwire.Window))
		wrote <- err
	}()
	for range 100 {
		s, err := door.Ask(buildwire.Ask{What: buildwire.AskBlob})
		if err != nil {
			t.Fatal(err)
		}
		var size buildwire.Size
		if err := s.Heard(&size); err != nil || size.Size != 7 {
			t.Fatal(size, err)
		}
		s.End()
		s.Close()
	}
	select {
	case err := <-wrote:
		t.Fatal("the whole was taken", err)
	default:
	}
	close(stop)
	if err := <-wrote; err == nil {
		t.Error("a stream that was closed took data")
	}
	stuck.Close()
}

// The build's own frames keep their order, and an end of the connection reaches whoever waits.
func TestReportsAndTheEnd(t *testing.T) {
	var got []string
	seen := make(chan struct{})
	hold := make(chan struct{})
	defer close(hold)
	door := pair(t, func(s *buildwire.Stream, _ buildwire.Ask) { <-hold; s.Close() }, func(k buildwire.Kind, p []byte) error {
		got = append(got, string(rune(k))+string(p))
		if k == buildwire.Result {
			close(seen)
		}
		return nil
	})
	for _, text := range []string{"1", "2"} {
		if err := door.Send(buildwire.Status, []byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	if err := door.Send(buildwire.Result, []byte("3")); err != nil {
		t.Fatal(err)
	}
	<-seen
	if len(got) != 3 || got[0] != "s1" || got[1] != "s2" || got[2] != "r3" {
		t.Error(got)
	}
	s, err := door.Ask(buildwire.Ask{What: buildwire.AskSSH})
	if err != nil {
		t.Fatal(err)
	}
	go door.Close()
	if _, err := s.Read(make([]byte, 1)); err == nil || err == io.EOF {
		t.Errorf("reading of a lost connection gave %v", err)
	}
	if _, err := door.Ask(buildwire.Ask{}); err == nil {
		t.Error("asked on a closed connection")
	}
}

// Whatever a peer sends: no panic, no endless memory, and the connection ends with its bytes.
func FuzzFrames(f *testing.F) {
	f.Add([]byte("s\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02{}"))
	f.Add([]byte("o\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x10{\"ask\":\"secret\"}d\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x01xe\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00"))
	f.Add([]byte("c\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x04\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, in []byte) {
		var wg sync.WaitGroup
		c := buildwire.NewClient(&script{in: bytes.NewReader(in)}, func(s *buildwire.Stream, _ buildwire.Ask) {
			wg.Add(1)
			defer wg.Done()
			io.Copy(io.Discard, s)
			s.Close()
		}, func(buildwire.Kind, []byte) error { return nil })
		if err := c.Run(); err == nil {
			t.Error("the connection ended without an error")
		}
		c.Close()
	})
}

type script struct{ in io.Reader }

func (s *script) Read(p []byte) (int, error)  { return s.in.Read(p) }
func (s *script) Write(p []byte) (int, error) { return len(p), nil }
func (s *script) Close() error                { return nil }

func FuzzEntry(f *testing.F) {
	f.Add(buildwire.AppendEntry(buildwire.AppendEntry(nil, buildwire.Entry{Path: "a/b", Mode: 0o644, Size: 7, ModTime: -1, Link: "x"}), buildwire.Entry{}))
	f.Fuzz(func(t *testing.T, in []byte) {
		r := bufio.NewReader(bytes.NewReader(in))
		for {
			e, err := buildwire.ReadEntry(r)
			if err != nil {
				return
			}
			again, err := buildwire.ReadEntry(bufio.NewReader(bytes.NewReader(buildwire.AppendEntry(nil, e))))
			if err != nil || again != e {
				t.Errorf("%+v became %+v: %v", e, again, err)
			}
		}
	})
}
