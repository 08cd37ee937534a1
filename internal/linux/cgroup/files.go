package cgroup

import (
	"fmt"
	"io/fs"
	"strings"

	"golang.org/x/sys/unix"
)

// readFile reads a small file of a cgroup without its last newline.
func readFile(dir, name string) (string, error) {
	var buf [4096]byte
	n, err := readInto(dir, name, buf[:])
	if err != nil {
		return "", err
	}
	return strings.TrimRight(string(buf[:n]), "\n"), nil
}

// readInto reads a file of a cgroup into buf and returns how much of it; longer files are cut.
func readInto(dir, name string, buf []byte) (int, error) {
	fd, err := openRetry(dir+"/"+name, unix.O_RDONLY)
	if err != nil {
		return 0, &fs.PathError{Op: "open", Path: dir + "/" + name, Err: err}
	}
	defer unix.Close(fd) //nolint:errcheck // read only
	n := 0
	for n < len(buf) {
		c, err := unix.Read(fd, buf[n:])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return 0, &fs.PathError{Op: "read", Path: dir + "/" + name, Err: err}
		}
		if c == 0 {
			break
		}
		n += c
	}
	return n, nil
}

func openRetry(p string, flags int) (int, error) {
	for {
		fd, err := unix.Open(p, flags|unix.O_CLOEXEC, 0o600)
		if err != unix.EINTR {
			return fd, err
		}
	}
}

// writeFile writes one value in one write, as the kernel wants it.
func (m *Manager) writeFile(dir, name string, values ...string) error {
	fd, err := openRetry(dir+"/"+name, unix.O_WRONLY|m.host.openFlags)
	if err != nil {
		return fmt.Errorf("open %s/%s: %w", dir, name, err)
	}
	defer unix.Close(fd) //nolint:errcheck // the write below tells what failed
	for _, v := range values {
		if err := writeRetry(fd, v); err != nil {
			return fmt.Errorf("write %q to %s/%s: %w", v, dir, name, err)
		}
	}
	return nil
}

func writeRetry(fd int, v string) error {
	for {
		_, err := unix.Write(fd, []byte(v))
		if err != unix.EINTR {
			return err
		}
	}
}
