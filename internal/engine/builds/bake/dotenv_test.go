package bake

import (
	"errors"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func TestDotenv(t *testing.T) {
	env := map[string]string{"HOME": "/root", "GIVEN": "env"}
	got, err := dotenv(".env", []byte("\ufeff# first\nA=1\r\n\n  export B = two words # not this\nC: ${A}-${NONE:-x}\nD=\"a\\n$HOME \\$A\" # behind\nE='as $A is'\nF=\nG=x#y\nH='two\nlines'\nGIVEN=file\nI=$GIVEN\nALONE\n"), env)
	want := map[string]string{"A": "1", "B": "two words", "C": "1-x", "D": "a\n/root $A", "E": "as $A is", "F": "", "G": "x#y", "H": "two\nlines", "GIVEN": "file", "I": "env"}
	if err != nil || !maps.Equal(got, want) {
		t.Errorf("%v %q", err, got)
	}
	for text, part := range map[string]string{"A=1\nB='x": "line 2: unterminated quoted value", "A=1\n\nB C=1": "line 3: unexpected character", "=x": "without a name", "A='x' y": "behind a quoted value", "A=${": "not closed"} {
		if _, err := dotenv(".env", []byte(text), env); err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// include.env_file was refused, and .env of the project not read: both are how compose projects give their variables.
func TestFilesOfVariables(t *testing.T) {
	file := func(name, text string, extra bool) File { return File{Name: name, Data: []byte(text), Extra: extra} }
	files := []File{
		file("compose.yaml", "include: [{path: db/compose.yaml, env_file: [db/one.env, db/two.env]}]\nservices:\n  web:\n    image: web:$TAG\n    build: {context: ., args: [V, W]}\n", false),
		file(".env", "TAG=project\nV=v\n", true),
	}
	req := Request{Files: files, Platform: "linux/amd64", Env: map[string]string{"USER_SAYS": "yes"}, Targets: []string{"web", "db"}}
	_, err := Make(req)
	var more *Missing
	if !errors.As(err, &more) || !slices.Equal(more.Names, []string{"db/one.env", "db/two.env", "db/compose.yaml"}) {
		t.Fatal(err)
	}
	req.Files = append(req.Files, file("db/one.env", "TAG=never\nX=1\nUSER_SAYS=no\n", true), file("db/two.env", "X=2\nY=${X}y\n", true),
		file("db/compose.yaml", "services:\n  db:\n    image: db:$TAG\n    build: {context: ., args: {X: $X, Y: $Y, U: $USER_SAYS}}\n", true))
	plan, err := Make(req)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]Target{
		"web": {"tags": []string{"web:project"}, "args": map[string]string{"V": "v"}},
		"db":  {"tags": []string{"db:project"}, "args": map[string]string{"X": "2", "Y": "1y", "U": "yes"}},
	} {
		for key, value := range want {
			if got := plan.Targets[name][key]; !reflect.DeepEqual(got, value) {
				t.Errorf("%s.%s is %v, want %v", name, key, got, value)
			}
		}
	}
}

// An included file without env_file sees the .env of its own folder, behind what the project has; it was not looked for.
func TestIncludedFolderHasVariables(t *testing.T) {
	file := func(name, text string, extra bool) File { return File{Name: name, Data: []byte(text), Extra: extra} }
	req := Request{Platform: "linux/amd64", Env: map[string]string{"USER_SAYS": "yes"}, Files: []File{
		file("compose.yaml", "include: [db/compose.yaml, {path: [x/one.yaml, y/two.yaml], project_directory: z}, none/compose.yaml]\nservices:\n  web: {image: 'web:${DB:-none}', build: .}\n", false),
		file(".env", "TAG=project\n", true),
		file("db/compose.yaml", "services:\n  db: {image: 'db:$TAG-$DB-$USER_SAYS', build: .}\n", true),
		file("x/one.yaml", "services:\n  one: {image: 'one:$TAG-$Z', build: .}\n", true), file("y/two.yaml", "services:\n  two: {image: 'two:$Z', build: .}\n", true),
		file("none/compose.yaml", "services:\n  none: {image: 'none:$TAG', build: .}\n", true),
	}}
	_, err := Make(req)
	var more *Missing
	if !errors.As(err, &more) || len(more.Names) > 0 || !slices.Equal(more.Optional, []string{"db/.env", "z/.env", "none/.env"}) {
		t.Fatal(err, more)
	}
	req.Files = append(req.Files, file("db/.env", "TAG=never\nUSER_SAYS=no\nDB=15\n", true), file("z/.env", "Z=z\n", true), file("none/.env", "", true))
	plan, err := Make(req)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"web": "web:none", "db": "db:project-15-yes", "one": "one:project-z", "two": "two:z", "none": "none:project"} {
		if got := plan.Targets[name]["tags"]; !reflect.DeepEqual(got, []string{want}) {
			t.Errorf("%s: %v, want %s", name, got, want)
		}
	}
}

func FuzzDotenv(f *testing.F) {
	f.Add("A=1\nexport B=\"x$A\"\nC='y'\n# z\nD: ${A:-b}")
	f.Add("A=\\")
	f.Fuzz(func(t *testing.T, text string) {
		vars, err := dotenv("f", []byte(text), map[string]string{"A": "b"})
		for name := range vars {
			if err == nil && dotenvName(name) != nil {
				t.Errorf("%q is taken for a name", name)
			}
		}
	})
}
