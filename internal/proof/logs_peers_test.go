package proof

import (
	"bytes"
	"errors"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"corten.dev/corten/internal/busyboxtree"
	"corten.dev/corten/internal/enginetest"
	"corten.dev/corten/internal/logs/shiptest"
)

// neutral takes what differs from one container, or one moment, to the next out of a message.
func neutral(b []byte) string {
	text := string(b)
	for _, r := range []struct{ pattern, with string }{
		{`sha256:[0-9a-f]{64}`, "IMAGE"}, {`[0-9a-f]{64}`, "ID"}, {`\b[0-9a-f]{12}\b`, "SHORT"},
		{`[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d`, "STAMP"}, {`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{6})?(Z|[+-]\d\d:\d\d) `, "TIME$1 "}, {`TIME\.\d{6} `, "TIME.micro "},
		{`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{1,9}Z"`, `TIME"`}, {`"timestamp":\d+(\.\d{1,3})?`, `"timestamp":N`}, {`\[\d+\]`, "[PID]"}, {` \d+ web`, " PID web"}, {` \d+ SHORT`, " PID SHORT"},
	} {
		text = regexp.MustCompile(r.pattern).ReplaceAllString(text, r.with)
	}
	return text
}

// spoken is output that drivers treat in all the ways they have: both streams, an empty line, what JSON escapes, a line without an end.
const spoken = `printf 'out one\n'; echo 'err two' >&2; printf '\n\ttab "quoted" <&> back\\slash\r\nutf \303\251 bad \377\nlast, no newline'`

// Docker's engine and ours say the same, byte for byte, of the same container: what differs is time, ids and the engine's process.
func TestPeersLogs(t *testing.T) {
	p := newPeers(t, "docker")
	e := enginetest.Start(t)
	p.dockerd()
	image, err := busyboxtree.Tar(busyboxtree.Path)
	if err != nil {
		t.Skip(err)
	}
	if err := os.WriteFile(p.dir+"/busybox.tar", image, 0o600); err != nil {
		t.Fatal(err)
	}
	p.run("docker", "import", p.dir+"/busybox.tar", enginetest.Busybox)
	cases := []struct {
		network string
		opts    []string
	}{
		{"unixgram", []string{"syslog", "syslog-address=unixgram://ADDR"}},
		{"tcp", []string{"syslog", "syslog-address=tcp://ADDR", "syslog-format=rfc3164", "tag={{.Name}}", "syslog-facility=local3"}},
		{"udp", []string{"syslog", "syslog-address=udp://ADDR", "syslog-format=rfc5424", "tag={{.Name}}/{{.ImageName}}/{{.DaemonName}}"}},
		{"unix", []string{"syslog", "syslog-address=unix://ADDR", "syslog-format=rfc5424micro"}},
		{"udp", []string{"gelf", "gelf-address=udp://ADDR", "gelf-compression-type=none", "labels=com.ex.a,b", "env-regex=^FO"}},
		{"tcp", []string{"gelf", "gelf-address=tcp://ADDR", "tag={{.ImageName}}"}},
		{"", []string{"json-file"}},
		{"", []string{"json-file", "labels=b", "env=FOO", "tag={{.ID}}/{{.Name}}"}},
	}
	// Both at once: two machines' worth of waiting for the end of a container in the time of one.
	var group sync.WaitGroup
	got := make([][2]string, len(cases))
	for side, run := range []func(args ...string) (string, error){func(args ...string) (string, error) { return p.try("docker", args...) }, e.Try} {
		group.Add(1)
		go func() {
			defer group.Done()
			for i, c := range cases {
				var err error
				if got[i][side], err = speak(t, run, c.network, c.opts); err != nil {
					t.Error(err)
				}
			}
		}()
	}
	group.Wait()
	for i, c := range cases {
		if got[i][0] != got[i][1] {
			t.Errorf("%q:\ndocker:\n%s\nours:\n%s", c.opts, got[i][0], got[i][1])
		}
	}
}

// speak runs the container and returns what its destination has, the lines of the two streams sorted.
func speak(t *testing.T, run func(args ...string) (string, error), network string, opts []string) (string, error) {
	args := []string{"run", "-d", "--name", "web", "--network", "none", "-l", "com.ex.a=va", "-l", "b=v b", "-e", "FOO=x y", "--log-driver", opts[0]}
	var r *shiptest.Receiver
	if network != "" {
		r = shiptest.Listen(t, network, "", nil)
		defer r.Close()
	}
	for _, o := range opts[1:] {
		if r != nil {
			o = strings.ReplaceAll(o, "ADDR", r.Address)
		}
		args = append(args, "--log-opt", o)
	}
	if _, err := run(append(args, enginetest.Busybox, "sh", "-c", spoken)...); err != nil {
		return "", err
	}
	if _, err := run("wait", "web"); err != nil {
		return "", err
	}
	var all []string
	path, err := run("inspect", "-f", "{{.LogPath}}", "web")
	shiptest.Eventually(t, "the last line", func() bool {
		all = nil
		switch {
		case r == nil:
			b, rerr := os.ReadFile(path)
			err = errors.Join(err, rerr)
			all = strings.SplitAfter(neutral(b), "\n")
		case network == "udp" || network == "unixgram":
			for _, b := range r.Datagrams() {
				all = append(all, neutral(b))
			}
		default:
			all = strings.SplitAfter(neutral(bytes.ReplaceAll(r.Bytes(), []byte{0}, []byte("\\0\n"))), "\n")
		}
		return err != nil || strings.Contains(strings.Join(all, ""), "last, no newline") && strings.Contains(strings.Join(all, ""), "err two")
	})
	slices.Sort(all)
	if _, rerr := run("rm", "web"); rerr != nil {
		err = errors.Join(err, rerr)
	}
	return strings.Join(all, ""), err
}
