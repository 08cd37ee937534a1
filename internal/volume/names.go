package volume

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"strings"

	"corten.dev/corten/internal/errs"
)

// maxName keeps a name's record within what file systems take for a file name.
const maxName = 200

const nameChars = "[a-zA-Z0-9][a-zA-Z0-9_.-]"

// CheckName refuses what Docker refuses as the name of a local volume, in Docker's words.
func CheckName(name string) error {
	if len(name) == 1 {
		return errs.New(errs.Invalid, "create %s: volume name is too short, names should be at least two alphanumeric characters", name)
	}
	if len(name) > maxName {
		return errs.New(errs.Invalid, "create %s: volume name is too long, names should be at most %d characters", name, maxName)
	}
	alnum := func(c byte) bool { return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' }
	ok := len(name) > 0 && alnum(name[0])
	for i := 1; ok && i < len(name); i++ {
		ok = alnum(name[i]) || strings.IndexByte("_.-", name[i]) >= 0
	}
	if !ok {
		return errs.New(errs.Invalid, "create %s: %q includes invalid characters for a local volume name, only %q are allowed. If you intended to pass a host directory, use absolute path", name, name, nameChars)
	}
	return nil
}

// RandomName is the name of an anonymous volume: 64 digits.
func RandomName() (string, error) {
	var id [32]byte
	if _, err := rand.Read(id[:]); err != nil {
		return "", fmt.Errorf("name a volume: %w", err)
	}
	return hex.EncodeToString(id[:]), nil
}
