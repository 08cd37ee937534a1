package cli

import (
	"bytes"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"corten.dev/corten/internal/buildwire"
)

// An engine, or what stands in its place, may answer anything: a field that Docker's always has is missing, a list has null in it. That is an error, or nothing to show, and no crash.
func TestOddAnswers(t *testing.T) {
	verbs := []string{
		"ps", "ps -s", "ps --format json", "images", "images --tree", "images --digests", "network ls", "network ls --format json", "volume ls", "inspect x", "inspect -f {{.State.Pid}} x", "image inspect x",
		"top x", "diff x", "history x", "port x", "port x 80", "stats --no-stream x", "stats --no-stream", "system df", "system df -v", "version", "info", "events --until 1", "container prune -f", "image prune -f",
		"volume prune -f", "network prune -f", "system prune -f", "stop x", "wait x", "rmi x", "create busybox", "run -d busybox", "exec -d x true", "start x", "logs x", "cp x:/a /tmp/nowhere/x",
		"cp /etc/hostname x:/a", "commit x", "update --cpus 1 x", "update --label a=b --dry-run x", "upgrade x", "upgrade --pull never x", "load", "save x", "import - x", "pull x", "push x", "push ssh x", "search x", "image tags x",
		"manifest inspect x", "manifest inspect -v x", "manifest create l x", "manifest annotate l x --arch arm", "buildx imagetools inspect x", "buildx imagetools create -t y x", "buildx ls", "buildx inspect", "buildx du", "buildx du --verbose",
		"buildx prune -f", "builder prune -f", "buildx history ls", "buildx history inspect", "buildx history logs", "volume create x", "volume update --availability drain x", "volume snapshots x", "volume snapshot x", "volume clone x y",
		"network create x", "network update --undo x", "network connect x y", "tag x y", "rename x y", "kill x", "__complete inspect ", "__complete rmi ", "__complete volume rm ", "__complete run --log-driver ",
	}
	for _, answer := range []string{`null`, `{}`, `[]`, `[null]`, `[{}]`, `[null,null]`, `{"Volumes":[null,null],"Changes":null}`, `""`, `7`, ``, `{"Id":"x","Config":null,"State":null,"Plugins":null,"manifests":[{}],"schemaVersion":2}`} {
		engine := engineOf(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Api-Version", "1.56")
			w.Header().Set("Content-Type", "application/json")
			w.Header().Set("X-Docker-Container-Path-Stat", "e30=")
			_, _ = w.Write([]byte(answer))
		})
		for _, line := range verbs {
			line = strings.ReplaceAll(line, "push ssh", "push unix://"+engine)
			args := append([]string{"-H", "unix://" + engine}, strings.Split(line, " ")...)
			var out, errOut bytes.Buffer
			Main(t.Context(), args, Streams{In: strings.NewReader(""), Out: &out, Err: &errOut})
		}
	}
}

// engineOf serves a handler of the test's own.
func engineOf(t *testing.T, answer http.HandlerFunc) (socket string) {
	t.Helper()
	socket = filepath.Join(filepath.Dir(newFake(t, nil).socket), "own")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{ReadHeaderTimeout: time.Minute, Handler: answer}
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })
	return socket
}

// stats of named containers ended with 0 when the engine was killed, as if the containers had ended.
func TestStatsTellThatTheEngineWent(t *testing.T) {
	engine := engineOf(t, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte(`{"id":"0b44","name":"/web"}`))
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	})
	var out, errOut bytes.Buffer
	code := Main(t.Context(), []string{"-H", "unix://" + engine, "stats", "web"}, Streams{In: strings.NewReader(""), Out: &out, Err: &errOut})
	if code != 1 || !strings.Contains(errOut.String(), "went away") {
		t.Errorf("%d %s", code, &errOut)
	}
}

// "^1abc" was taken for ^1.
func TestWhichBuild(t *testing.T) {
	list := []buildwire.Build{{Ref: "aa1"}, {Ref: "ab2"}, {Ref: "c3"}}
	for word, want := range map[string]string{"": "aa1", "^0": "aa1", "^2": "c3", "^3": "", "^1abc": "", "^-1": "", "^": "", "ab": "ab2", "a": "", "default/default/c": "c3", "x": ""} {
		b, err := findBuild(list, word)
		if (err != nil) != (want == "") || err == nil && b.Ref != want {
			t.Errorf("%q: %v %v, want %q", word, b, err, want)
		}
	}
}
