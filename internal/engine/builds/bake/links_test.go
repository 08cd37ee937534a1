package bake_test

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"corten.dev/corten/internal/engine/builds/bake"
)

// Compose files lead to others: extends and include were refused, and with them the projects of most teams.
func TestComposeLinks(t *testing.T) {
	main := bake.File{Name: "compose.yaml", Data: []byte(`
include:
  - db/compose.yaml
services:
  base:
    build: {context: app, args: [A=1, B=2], tags: [one]}
  web:
    image: web:1
    extends: base
    build: {args: {B: "3"}, tags: [two]}
  far:
    extends: {service: thing, file: common/base.yaml}
    build: {target: far}
`)}
	req := bake.Request{Files: []bake.File{main}, Platform: "linux/amd64"}
	_, err := bake.Make(req)
	var more *bake.Missing
	if !errors.As(err, &more) || !reflect.DeepEqual(more.Names, []string{"db/compose.yaml", "common/base.yaml"}) {
		t.Fatal(err)
	}
	req.Files = append(req.Files, bake.File{Name: "db/.env", Extra: true}, bake.File{Name: "db/compose.yaml", Extra: true, Data: []byte("services:\n  db:\n    build: .\n    image: db:1\n")},
		bake.File{Name: "common/base.yaml", Extra: true, Data: []byte("services:\n  root:\n    build: {context: ., args: {R: r}}\n  thing:\n    extends: {service: root}\n    build: {dockerfile: D}\n")})
	plan, err := bake.Make(req)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := plan.JSON()
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bake.Target{
		"web": {"context": "app", "args": map[string]string{"A": "1", "B": "3"}, "tags": []string{"one", "two"}},
		"db":  {"context": "db", "tags": []string{"db:1"}},
		"far": {"context": "common", "args": map[string]string{"R": "r"}, "dockerfile": "D", "target": "far"},
	} {
		for key, value := range want {
			if got := plan.Targets[name][key]; !reflect.DeepEqual(got, value) {
				t.Errorf("%s.%s is %v in\n%s", name, key, got, raw)
			}
		}
	}
	for text, want := range map[string]string{
		"services:\n  a:\n    extends: b\n    build: .\n  b:\n    extends: a\n    build: .\n": "extends itself",
		"services:\n  a:\n    extends: none\n    build: .\n":                                  `there is no service "none"`,
		"include: [https://x.example/y.yaml]\n":                                               "files at an address are not fetched",
		"include: [compose.yaml]\nservices:\n  a: {build: .}\n":                               "deeper than",
		"include: [compose.yaml, compose.yaml]\n":                                             "deeper than",
		"include: [db/compose.yaml]\nservices:\n  db: {build: .}\n":                           "conflicting service db",
		"include: [{path: db/compose.yaml, env_file: [1]}]\n":                                 "env_file: give a path",
		"include: [[1]]\n": "give a path",
	} {
		files := append([]bake.File{{Name: "compose.yaml", Data: []byte(text)}, {Name: "compose.yaml", Data: []byte(text), Extra: true}}, req.Files[1:]...)
		if _, err := bake.Make(bake.Request{Files: files}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}

// Twenty files, each of which names the next one twice, would be read a million times: the engine was busy with them for minutes.
func TestIncludesAreBounded(t *testing.T) {
	req := bake.Request{Platform: "linux/amd64", Files: []bake.File{{Name: "compose.yaml", Data: []byte("include: [f0.yaml, f0.yaml]\n")}}}
	for i := range 18 {
		req.Files = append(req.Files, bake.File{Name: fmt.Sprintf("f%d.yaml", i), Extra: true, Data: fmt.Appendf(nil, "include: [f%d.yaml, f%[1]d.yaml]\n", i+1)})
	}
	req.Files = append(req.Files, bake.File{Name: "f18.yaml", Extra: true, Data: []byte("services: {}\n")}, bake.File{Name: ".env", Extra: true})
	if _, err := bake.Make(req); err == nil || !strings.Contains(err.Error(), "more than 500 files") {
		t.Error(err)
	}
}
