package serve

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/pflag"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/registry/server/access"
)

// htpasswd makes the line of a user, or puts it into a file. Passwords never come from arguments: those are in every process list.
func htpasswd(args []string, std IO) error {
	set := pflag.NewFlagSet("htpasswd", pflag.ContinueOnError)
	set.SetOutput(std.Out)
	file := set.StringP("file", "f", "", "File to put the line into, in place of the user's former one; without it the line is printed")
	remove := set.Bool("remove", false, "Take the user out of the file")
	set.Usage = func() {
		fmt.Fprintf(std.Out, "Usage: cortend registry htpasswd [flags] USER\n\nMake the line of a user for the registry's file of users. The password is the first line of the standard input.\n\n%s", set.FlagUsages())
	}
	if err := set.Parse(args); errors.Is(err, pflag.ErrHelp) {
		return err
	} else if err != nil {
		return usageError{err}
	}
	if set.NArg() != 1 {
		return badUsage("htpasswd takes one argument, the user; the password is read from the standard input")
	}
	user := set.Arg(0)
	if *remove && *file == "" {
		return badUsage("--remove needs --file")
	}
	line := ""
	if !*remove {
		password, err := askPassword(std)
		if err != nil {
			return err
		}
		if line, err = access.HashLine(user, password); err != nil {
			return err
		}
	}
	if *file == "" {
		fmt.Fprintln(std.Out, line)
		return nil
	}
	return changeUser(*file, user, line)
}

func readPassword(in io.Reader) (string, error) {
	line, err := bufio.NewReader(io.LimitReader(in, 4096)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return "", fmt.Errorf("password: %w", err)
	}
	line = strings.TrimRight(line, "\r\n")
	if line == "" {
		return "", errs.New(errs.Invalid, "the password is missing: give it as the first line of the standard input")
	}
	return line, nil
}

// changeUser writes the whole file anew and puts it in the place of the old one, so that a registry that reads meanwhile sees one or the other.
func changeUser(path, user, line string) error {
	text, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	users, err := access.ParseHtpasswd(text)
	if err != nil {
		return errs.New(errs.Invalid, "%s %w", path, err)
	}
	if _, ok := users[user]; line == "" && !ok {
		return errs.New(errs.NotFound, "%s: there is no user %s", path, user)
	}
	var out strings.Builder
	done := line == ""
	for old := range strings.Lines(string(text)) {
		if name, _, ok := strings.Cut(strings.TrimSpace(old), ":"); ok && name == user {
			if !done {
				out.WriteString(line + "\n")
				done = true
			}
			continue
		}
		out.WriteString(strings.TrimRight(old, "\n") + "\n")
	}
	if !done {
		out.WriteString(line + "\n")
	}
	return replace(path, []byte(out.String()))
}

func replace(path string, text []byte) error {
	mode := fs.FileMode(0o600)
	info, err := os.Stat(path)
	if err == nil {
		mode = info.Mode().Perm()
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".htpasswd-*")
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	err = errors.Join(err, f.Chmod(mode), keepOwner(f, info), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}
