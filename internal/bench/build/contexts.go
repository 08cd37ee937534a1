package build

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// contexts are the directories that builds read. The large ones are made once for all contestants.
type contexts struct {
	dir     string
	changes int
}

// files makes a directory with these files, by path.
func (c *contexts) files(name string, files map[string]string) (string, error) {
	dir := filepath.Join(c.dir, name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	for path, text := range files {
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return "", err
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return "", err
		}
	}
	return dir, nil
}

// change writes a text that was never there before; its %q, if any, is where it differs.
func (c *contexts) change(path, format string) error {
	c.changes++
	text := fmt.Sprintf("%s %d", format, c.changes)
	if strings.Contains(format, "%q") {
		text = fmt.Sprintf(format, fmt.Sprint("change ", c.changes))
	}
	return os.WriteFile(path, []byte(text), 0o644)
}

// many is a tree of 50,000 files in 500 directories.
func (c *contexts) many() (string, error) {
	return c.once("many", func(dir string) error {
		text := strings.Repeat("a line of source\n", 40)
		for d := range 500 {
			sub := filepath.Join(dir, fmt.Sprint("d", d))
			if err := os.Mkdir(sub, 0o755); err != nil {
				return err
			}
			for f := range 100 {
				if err := os.WriteFile(filepath.Join(sub, fmt.Sprint("f", f)), []byte(fmt.Sprint(d, f, text)), 0o644); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// big is 1 GB in files of 4 MB that do not compress.
func (c *contexts) big() (string, error) {
	return c.once("big", func(dir string) error {
		rng := rand.NewChaCha8([32]byte{1})
		piece := make([]byte, 4_000_000)
		for i := range 250 {
			if _, err := rng.Read(piece); err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(dir, fmt.Sprint("part", i)), piece, 0o644); err != nil {
				return err
			}
		}
		return nil
	})
}

func (c *contexts) once(name string, fill func(dir string) error) (string, error) {
	dir := filepath.Join(c.dir, "shared-"+name)
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	return dir, fill(dir)
}

func goroot() (string, error) {
	out, err := exec.Command("go", "env", "GOROOT").Output()
	root := strings.TrimSpace(string(out))
	if err != nil || root == "" {
		return "", errors.New("no Go on this host")
	}
	return filepath.EvalSymlinks(root)
}

// goFiles is a program of a few packages in two stages.
func goFiles(golang, mount string) map[string]string {
	files := map[string]string{
		"go.mod": "module example.org/bench\n\ngo 1.20\n",
		"main.go": "package main\n\nimport (\n\t\"encoding/json\"\n\t\"os\"\n\n\t\"example.org/bench/say\"\n)\n\n" +
			"func main() {\n\tif err := json.NewEncoder(os.Stdout).Encode(say.All()); err != nil {\n\t\tos.Exit(1)\n\t}\n}\n",
		"say/word.go": "package say\n\nconst word = \"nothing yet\"\n",
		"Dockerfile": "FROM " + golang + " AS build\nWORKDIR /src\nCOPY go.mod ./\nCOPY . .\nRUN " + mount + "go build -o /app .\n" +
			"FROM scratch\nCOPY --from=build /app /app\nENTRYPOINT [\"/app\"]\n",
	}
	all := "package say\n\nimport (\n"
	body := ""
	for i := range 20 {
		files[fmt.Sprintf("part%d/part.go", i)] = fmt.Sprintf("package part%d\n\n// Say says it.\nfunc Say(w string) string { return w + \" %d\" }\n", i, i)
		all += fmt.Sprintf("\t\"example.org/bench/part%d\"\n", i)
		body += fmt.Sprintf("\t\tpart%d.Say(word),\n", i)
	}
	files["say/all.go"] = all + ")\n\n// All says all.\nfunc All() []string {\n\treturn []string{\n" + body + "\t}\n}\n"
	return files
}
