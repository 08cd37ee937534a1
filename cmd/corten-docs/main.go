// Command corten-docs writes the pages of the command line's reference into a folder, and removes those of commands that
// are gone.
package main

import (
	"log"
	"os"
	"path/filepath"

	"corten.dev/corten/internal/cli"
)

func main() {
	log.SetFlags(0)
	if len(os.Args) != 2 {
		log.Fatal("usage: corten-docs FOLDER")
	}
	if err := write(os.Args[1]); err != nil {
		log.Fatal(err)
	}
}

func write(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	pages := cli.Pages()
	old, err := filepath.Glob(filepath.Join(dir, "corten-*.md"))
	if err != nil {
		return err
	}
	for _, name := range old {
		if _, ok := pages[filepath.Base(name)]; !ok {
			if err := os.Remove(name); err != nil {
				return err
			}
		}
	}
	for name, text := range pages {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}
