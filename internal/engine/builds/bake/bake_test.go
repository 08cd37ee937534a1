package bake_test

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"

	"corten.dev/corten/internal/engine/builds/bake"
	"corten.dev/corten/internal/errs"
)

// Each case is a file of testdata: bake files, and "args" (targets, --set x, NAME=value), "want" (the plan) or "error".
func TestPlans(t *testing.T) {
	cases, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(cases) == 0 {
		t.Fatal(err, "no cases")
	}
	for _, name := range cases {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".txtar"), func(t *testing.T) {
			ar, err := txtar.ParseFile(name)
			if err != nil {
				t.Fatal(err)
			}
			req := bake.Request{Env: map[string]string{}, Platform: "linux/amd64"}
			var want, wrong string
			for _, f := range ar.Files {
				switch f.Name {
				case "args":
					for arg := range strings.SplitSeq(strings.TrimSpace(string(f.Data)), "\n") {
						if set, ok := strings.CutPrefix(arg, "--set "); ok {
							req.Overrides = append(req.Overrides, set)
						} else if k, v, ok := strings.Cut(arg, "="); ok {
							req.Env[k] = v
						} else {
							req.Targets = append(req.Targets, arg)
						}
					}
				case "want":
					want = string(f.Data)
				case "error":
					wrong = strings.TrimSpace(string(f.Data))
				default:
					req.Files = append(req.Files, bake.File{Name: f.Name, Data: f.Data})
				}
			}
			plan, err := bake.Make(req)
			if wrong != "" {
				if err == nil || !strings.Contains(err.Error(), wrong) {
					t.Errorf("got %v, want %s", err, wrong)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			got, err := plan.JSON()
			if err != nil {
				t.Fatal(err)
			}
			if os.Getenv("UPDATE") != "" {
				for i := range ar.Files {
					if ar.Files[i].Name == "want" {
						ar.Files[i].Data = got
					}
				}
				if err := os.WriteFile(name, txtar.Format(ar), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if string(got) != want {
				t.Errorf("got:\n%swant:\n%s", got, want)
			}
		})
	}
}

func FuzzMake(f *testing.F) {
	cases, _ := filepath.Glob("testdata/*.txtar")
	for _, name := range cases {
		if ar, err := txtar.ParseFile(name); err == nil {
			for _, file := range ar.Files {
				f.Add(file.Name, file.Data)
			}
		}
	}
	f.Fuzz(func(t *testing.T, name string, data []byte) {
		plan, err := bake.Make(bake.Request{Files: []bake.File{{Name: name, Data: data}}})
		if err != nil {
			if !errors.Is(err, errs.Invalid) && !errors.Is(err, errs.NotFound) && !errors.Is(err, errs.NotImplemented) {
				t.Skip()
			}
			return
		}
		if data, err := plan.JSON(); err != nil || !json.Valid(data) {
			t.Errorf("%v %s", err, data)
		}
	})
}
