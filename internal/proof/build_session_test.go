package proof

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	control "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/filesync"
	"github.com/tonistiigi/fsutil"
	"google.golang.org/protobuf/proto"

	"corten.dev/corten/internal/enginetest"
)

// postBuild is POST /build of docker's clients before 23.0 with DOCKER_BUILDKIT=1. It gives the image's id and the names of the steps.
func postBuild(t *testing.T, e *enginetest.Engine, query url.Values, body io.Reader) (id string, steps []string) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", strings.TrimPrefix(e.Socket(), "unix://"))
	}}}
	query.Set("version", "2")
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://engine/v1.41/build?"+query.Encode(), body)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	for dec := json.NewDecoder(resp.Body); ; {
		var m struct {
			ID    string          `json:"id"`
			Aux   json.RawMessage `json:"aux"`
			Error string          `json:"error"`
		}
		if err := dec.Decode(&m); err == io.EOF {
			return id, steps
		} else if err != nil || m.Error != "" {
			t.Error(err, m.Error)
			return id, steps
		}
		switch m.ID {
		case "moby.buildkit.trace":
			var raw []byte
			var st control.StatusResponse
			if err := json.Unmarshal(m.Aux, &raw); err != nil {
				t.Error(err)
			} else if err := proto.Unmarshal(raw, &st); err != nil {
				t.Error(err)
			}
			for _, v := range st.Vertexes {
				if v.Completed != nil {
					steps = append(steps, v.Name)
				}
			}
		case "moby.image.id":
			var aux struct{ ID string }
			if err := json.Unmarshal(m.Aux, &aux); err != nil {
				t.Error(err)
			}
			id = aux.ID
		}
	}
}

// Debian's docker.io is 20.10: its client has no buildx, and builds with BuildKit by POST /build?version=2 beside a session. The engine refused that: DOCKER_BUILDKIT=1 docker build failed.
func TestBuildKitOfOldClients(t *testing.T) {
	e := enginetest.Start(t)
	dir := t.TempDir()
	dockerfile := "FROM corten/hello AS base\nFROM scratch\nCOPY --from=base / /\nCOPY f /f\n"
	for name, text := range map[string]string{"Dockerfile": dockerfile, "f": "F"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	fs, err := fsutil.NewFS(dir)
	if err != nil {
		t.Fatal(err)
	}
	ses, err := session.NewSession(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	ses.Allow(filesync.NewFSSyncProvider(filesync.StaticDirSource{"context": fs, "dockerfile": fs}))
	over := make(chan error, 1)
	go func() {
		over <- ses.Run(t.Context(), func(ctx context.Context, _ string, meta map[string][]string) (net.Conn, error) {
			return upgraded(ctx, e, "/session", meta)
		})
	}()
	one, steps := postBuild(t, e, url.Values{"session": {ses.ID()}, "remote": {"client-session"}, "buildid": {"one"}, "t": {"one"}}, nil)
	if one == "" || !strings.Contains(strings.Join(steps, "\n"), "COPY f /f") {
		t.Errorf("%q %q", one, steps)
	}

	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	if err := w.AddFS(os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	sent := make(chan struct{})
	go func() { // the context of an archive is another request
		defer close(sent)
		postBuild(t, e, url.Values{"buildid": {"upload-request:two"}}, &archive)
	}()
	two, _ := postBuild(t, e, url.Values{"session": {ses.ID()}, "remote": {"upload-request"}, "buildid": {"two"}, "t": {"two"}}, nil)
	<-sent
	if two == "" {
		t.Error("nothing was built of an archive")
	}
	if err := ses.Close(); err != nil {
		t.Error(err)
	}
	if err := <-over; err != nil {
		t.Error(err)
	}
	e.Corten("image", "inspect", "one", "two")
}
