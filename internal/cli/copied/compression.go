package copied

import (
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"errors"
	"io"
	"os/exec"
	"strings"

	"corten.dev/corten/internal/errs"
)

// IsArchive looks at the first bytes of what comes: it is compressed, or a tar. 1,024 bytes are enough.
func IsArchive(head []byte) bool {
	return compression(head) != "" || len(head) >= 262 && string(head[257:262]) == "ustar" || oldTar(head)
}

// compression names the program that undoes it; "gzip" and "bzip2" we do ourselves.
func compression(head []byte) string {
	for magic, name := range map[string]string{"\x1f\x8b\x08": "gzip", "BZh": "bzip2", "\xfd7zXZ\x00": "xz", "\x28\xb5\x2f\xfd": "zstd"} {
		if bytes.HasPrefix(head, []byte(magic)) {
			return name
		}
	}
	return ""
}

// oldTar knows archives from before "ustar" by the sum over their first header.
func oldTar(head []byte) bool {
	if len(head) < 512 {
		return false
	}
	field := strings.Trim(string(head[148:156]), " \x00")
	want, sum := 0, 0
	for _, r := range field {
		if r < '0' || r > '7' {
			return false
		}
		want = want*8 + int(r-'0')
	}
	for i, b := range head[:512] {
		if i >= 148 && i < 156 {
			b = ' '
		}
		sum += int(b)
	}
	return field != "" && sum == want
}

// Decompress undoes the compression that the first bytes, which were peeked at, tell. The client carries no library for what the standard one lacks, as the engine does (internal/compressed): every command would start slower.
func Decompress(in io.Reader, head []byte) (io.ReadCloser, error) {
	switch name := compression(head); name {
	case "":
		return io.NopCloser(in), nil
	case "gzip":
		return gzip.NewReader(in)
	case "bzip2":
		return io.NopCloser(bzip2.NewReader(in)), nil
	default:
		return through(name, in)
	}
}

// through runs a program that unpacks its standard input.
func through(name string, in io.Reader) (io.ReadCloser, error) {
	program, err := exec.LookPath(name)
	if err != nil {
		return nil, errs.New(errs.Unavailable, "the context is compressed by %s, and that program is not installed", name)
	}
	cmd := exec.Command(program, "-d", "-c")
	cmd.Stdin = in
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return &unpacking{ReadCloser: out, cmd: cmd}, nil
}

type unpacking struct {
	io.ReadCloser
	cmd *exec.Cmd
}

// Close waits for the program: an archive that it found broken is an error.
func (u *unpacking) Close() error {
	_, err := io.Copy(io.Discard, u.ReadCloser)
	return errors.Join(err, u.cmd.Wait())
}
