package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// whole does what must not leave half of a file behind: Ctrl-C ends its context instead of the process.
func whole(ctx context.Context, do func(context.Context) error) error {
	ctx, stop := cancellable(ctx)
	defer stop()
	err := do(ctx)
	if err != nil && ctx.Err() != nil {
		return &exitError{code: exitCanceled}
	}
	return err
}

// special is what is there and no regular file (a pipe, /dev/null): it is written to as it is.
func special(name string) bool {
	st, err := os.Stat(name)
	return err == nil && !st.Mode().IsRegular()
}

func writeTo(name string, r io.Reader) error {
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	return errors.Join(copyOut(f, r), f.Close())
}

// writeFile writes beside the name and renames at the end.
func writeFile(name string, r io.Reader) error {
	temp, err := writeAside(name, r, 0o600)
	if err != nil {
		return err
	}
	return rename(temp, name)
}

// writeAside writes a file beside the one that it is to be, and gives its name: what is incomplete never has the name that was asked for.
func writeAside(name string, r io.Reader, mode fs.FileMode) (temp string, err error) {
	f, err := os.CreateTemp(filepath.Dir(followed(name)), ".tmp-"+filepath.Base(name))
	if err != nil {
		return "", err
	}
	if err := errors.Join(copyOut(f, r), f.Chmod(mode), f.Close()); err != nil {
		return "", errors.Join(fmt.Errorf("write %s: %w", name, err), os.Remove(f.Name()))
	}
	return f.Name(), nil
}

// rename gives a file of writeAside its name; a link that has the name stays one.
func rename(temp, name string) error {
	if err := os.Rename(temp, followed(name)); err != nil {
		return errors.Join(err, os.Remove(temp))
	}
	return nil
}

func followed(name string) string {
	if real, err := filepath.EvalSymlinks(name); err == nil {
		return real
	}
	return name
}
