package image_test

import (
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/image"
	"corten.dev/corten/internal/snapshot"
)

func TestApplyChanges(t *testing.T) {
	for in, want := range map[string]string{
		`CMD ["a", "b"]`:                         `{"Cmd":["a","b"]}`,
		`cmd echo "$HOME" x`:                     `{"Cmd":["/bin/sh","-c","echo \"$HOME\" x"]}`,
		`ENTRYPOINT ["e"]`:                       `{"Entrypoint":["e"]}`,
		"ENTRYPOINT [\"e\"]\nCMD c":              `{"Entrypoint":["e"],"Cmd":["/bin/sh","-c","c"]}`,
		"CMD [\"c\"]\nENTRYPOINT [\"e\"]":        `{"Entrypoint":["e"],"Cmd":["c"]}`,
		`ENV a=b`:                                `{"Env":["a=b"]}`,
		`ENV a b  c`:                             `{"Env":["a=b  c"]}`,
		`ENV a="b c" d='$x' e=f\ g`:              `{"Env":["a=b c","d=$x","e=f g"]}`,
		"ENV a=1\nENV b=$a/${a}x${n:-y}${a:+z}":  `{"Env":["a=1","b=1/1xyz"]}`,
		"ENV a=1\nENV a=2":                       `{"Env":["a=2"]}`,
		"EXPOSE 80 53/udp 90-91":                 `{"ExposedPorts":{"53/udp":{},"80/tcp":{},"90/tcp":{},"91/tcp":{}}}`,
		"EXPOSE 8080:80 127.0.0.1:81:81/udp $no": `{"ExposedPorts":{"80/tcp":{},"81/udp":{}}}`,
		`LABEL k=v "q r"="s t"`:                  `{"Labels":{"k":"v","q r":"s t"}}`,
		"LABEL a=b \\\n  c=d":                    `{"Labels":{"a":"b","c":"d"}}`,
		`ONBUILD RUN x`:                          `{"OnBuild":["RUN x"]}`,
		`STOPSIGNAL SIGUSR1`:                     `{"StopSignal":"SIGUSR1"}`,
		`STOPSIGNAL 9`:                           `{"StopSignal":"9"}`,
		`USER a:b`:                               `{"User":"a:b"}`,
		`VOLUME ["/a", "/b"]`:                    `{"Volumes":{"/a":{},"/b":{}}}`,
		`VOLUME /a /b`:                           `{"Volumes":{"/a":{},"/b":{}}}`,
		"WORKDIR /a\nWORKDIR b/../c":             `{"WorkingDir":"/a/c"}`,
		`HEALTHCHECK --interval=5s --retries=3 CMD curl x`: `{"Healthcheck":{"Test":["CMD-SHELL","curl x"],"Interval":5000000000,"Retries":3}}`,
		`HEALTHCHECK CMD ["a"]`:                            `{"Healthcheck":{"Test":["CMD","a"]}}`,
		`HEALTHCHECK NONE`:                                 `{"Healthcheck":{"Test":["NONE"]}}`,
		"# remark\n\nUSER x":                               `{"User":"x"}`,
		`RUN x`:                                            "!run is not a valid change command",
		`FROM x`:                                           "!from is not a valid change command",
		`ENV`:                                              "!ENV requires at least one argument",
		`ENV a`:                                            "!ENV must have two arguments",
		`ENV a=b c`:                                        "!Syntax error - can't find = in \"c\". Must be of the form: name=value",
		`ENV =b`:                                           "!ENV names can not be blank",
		`EXPOSE x`:                                         "!invalid containerPort: x",
		`EXPOSE 70000`:                                     "!invalid containerPort: 70000",
		`EXPOSE 80: `:                                      "!no port specified: 80:<empty>",
		`EXPOSE 80/icmp`:                                   "!invalid proto: icmp",
		`STOPSIGNAL SIGNOPE`:                               "!invalid signal: SIGNOPE",
		`ONBUILD ONBUILD RUN x`:                            "!Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed",
		`USER a b`:                                         "!USER requires exactly one argument",
		`LABEL a="b`:                                       "!unexpected end of statement while looking for matching double-quote",
		`HEALTHCHECK RUN x`:                                "!Unknown type \"RUN\" in HEALTHCHECK (try CMD)",
	} {
		run := image.RunConfig{}
		err := image.ApplyChanges(&run, strings.Split(in, "\n"))
		if strings.HasPrefix(in, "LABEL a=b \\") {
			run = image.RunConfig{}
			err = image.ApplyChanges(&run, []string{in})
		}
		data, jerr := json.Marshal(run)
		if jerr != nil {
			t.Fatal(jerr)
		}
		got := string(data)
		if err != nil {
			got = "!" + err.Error()
			if !errors.Is(err, errs.Invalid) {
				t.Errorf("%s: no kind", in)
			}
		}
		if got != want {
			t.Errorf("%s:\n got %s\nwant %s", in, got, want)
		}
	}
}

func FuzzApplyChanges(f *testing.F) {
	for _, s := range []string{`ENV a=${b:-"c"} 'd'=e`, `CMD ["a"`, "LABEL a\\\n=b", `HEALTHCHECK --interval=1s CMD x`, `EXPOSE 1-2/udp`, `ENV a=${b:+${c}}`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var run image.RunConfig
		if err := image.ApplyChanges(&run, []string{s}); err != nil && !errors.Is(err, errs.Invalid) {
			t.Error(err)
		}
	})
}

func TestCommit(t *testing.T) {
	h := open(t, t.TempDir())
	img := loadHello(t, h)
	if err := h.snaps.Prepare(ctx, "c1", img.Chain, snapshot.Options{}); err != nil {
		t.Fatal(err)
	}
	m, err := h.snaps.Mount(ctx, "c1")
	if err != nil {
		t.Fatal(err)
	}
	fd := "/proc/self/fd/" + itoa(m.Root.Fd())
	if err := errors.Join(os.WriteFile(fd+"/etc/new", []byte("n"), 0o644), os.Remove(fd+"/etc/group"), m.Close()); err != nil {
		t.Fatal(err)
	}
	run := img.Config.Config
	got, err := h.Commit(ctx, image.CommitOptions{Key: "c1", Parent: img.ID, Ref: "mine:1", Author: "a", Comment: "c", Run: run, Changes: []string{"ENV X=1", "ENTRYPOINT []"}, CreatedBy: "sh"})
	if err != nil {
		t.Fatal(err)
	}
	c := got.Config
	if len(c.RootFS.DiffIDs) != 2 || len(c.History) != 2 || c.History[1].CreatedBy != "sh" || c.Author != "a" || strings.Join(c.Config.Env, " ") != "PATH=/ X=1" || len(c.Config.Entrypoint) != 0 || len(img.Config.Config.Env) != 1 {
		t.Errorf("%+v", c)
	}
	// Deleting the parent frees nothing that the new image needs; deleting both frees all but what the tree stands on, until it goes.
	for _, ref := range []string{"corten/hello", "mine:1"} {
		if _, err := h.Remove(ctx, ref, true, true, nil); err != nil {
			t.Fatal(err)
		}
	}
	if layers, _ := h.snaps.Layers(ctx); len(layers) != 1 {
		t.Errorf("layers %v", layers)
	}
	if err := h.snaps.Remove(ctx, "c1"); err != nil {
		t.Fatal(err)
	}
	h.Sweep()
	if layers, _ := h.snaps.Layers(ctx); len(layers) != 0 {
		t.Errorf("layers %v", layers)
	}
}
