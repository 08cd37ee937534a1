package access

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/bcrypt"

	"corten.dev/corten/internal/errs"
)

const (
	lookAgain   = time.Second // how often the file's date is looked at
	maxPassword = 72          // bcrypt takes no more
	maxFile     = 16 << 20
)

// Htpasswd is a file of users: one "name:bcrypt-hash" a line. It is read again when it has changed; a version that cannot be read leaves the last good one in force.
type Htpasswd struct {
	path  string
	log   *slog.Logger
	dummy []byte // compared with for users who are not there
	mu    sync.Mutex
	users map[string]string
	seen  stamp
	next  time.Time
}

type stamp struct {
	size int64
	time time.Time
	file os.FileInfo
}

// OpenHtpasswd reads a file; it must be good now.
func OpenHtpasswd(path string, log *slog.Logger) (*Htpasswd, error) {
	dummy, err := bcrypt.GenerateFromPassword([]byte("nobody"), bcrypt.DefaultCost)
	if err != nil {
		return nil, err
	}
	h := &Htpasswd{path: path, log: log, dummy: dummy}
	if h.log == nil {
		h.log = slog.New(slog.DiscardHandler)
	}
	users, seen, err := h.read()
	if err != nil {
		return nil, err
	}
	h.users, h.seen, h.next = users, seen, time.Now().Add(lookAgain)
	return h, nil
}

func (h *Htpasswd) read() (map[string]string, stamp, error) {
	f, err := os.Open(h.path)
	if err != nil {
		return nil, stamp{}, fmt.Errorf("users: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, stamp{}, fmt.Errorf("users: %w", err)
	}
	if !info.Mode().IsRegular() || info.Size() > maxFile {
		return nil, stamp{}, errs.New(errs.Invalid, "users: %s is no plain file of less than %d MiB", h.path, maxFile>>20)
	}
	var text bytes.Buffer
	if _, err := text.ReadFrom(f); err != nil {
		return nil, stamp{}, fmt.Errorf("users: %w", err)
	}
	users, err := ParseHtpasswd(text.Bytes())
	if err != nil {
		return nil, stamp{}, errs.New(errs.Invalid, "users: %s %w", h.path, err)
	}
	return users, stamp{info.Size(), info.ModTime(), info}, nil
}

// ParseHtpasswd reads the lines of a file: users and their hashes. Hashes other than bcrypt's are refused.
func ParseHtpasswd(text []byte) (map[string]string, error) {
	users := map[string]string{}
	for i, line := range strings.Split(string(text), "\n") {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, hash, ok := strings.Cut(line, ":")
		if !ok {
			return nil, errs.New(errs.Invalid, "line %d: expected name:hash", i+1)
		}
		if err := CheckUser(name); err != nil {
			return nil, errs.New(errs.Invalid, "line %d: %w", i+1, err)
		}
		if _, err := bcrypt.Cost([]byte(hash)); err != nil {
			return nil, errs.New(errs.Invalid, "line %d: the hash of %s is not bcrypt's: make it with \"cortend registry htpasswd %s\" or \"htpasswd -B\"", i+1, name, name)
		}
		if _, ok := users[name]; ok {
			return nil, errs.New(errs.Invalid, "line %d: %s is there twice", i+1, name)
		}
		users[name] = hash
	}
	return users, nil
}

// CheckUser refuses names that cannot be in a file, a header or a rule.
func CheckUser(name string) error {
	if name == "" || len(name) > 128 || name == "*" || strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r == ':' || r == 0x7f || r == '#' }) {
		return errs.New(errs.Invalid, "user name %q: give 1 to 128 characters without blanks, colons and #", name)
	}
	return nil
}

// HashLine is the line of a user for the file.
func HashLine(user, password string) (string, error) {
	if err := CheckUser(user); err != nil {
		return "", err
	}
	if password == "" || len(password) > maxPassword {
		return "", errs.New(errs.Invalid, "the password of %s must have 1 to %d bytes", user, maxPassword)
	}
	hash, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.DefaultCost)
	if err != nil {
		return "", err
	}
	return user + ":" + string(hash), nil
}

// Reload reads the file now.
func (h *Htpasswd) Reload() error {
	users, seen, err := h.read()
	if err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.users, h.seen, h.next = users, seen, time.Now().Add(lookAgain)
	return nil
}

// current gives the users of this moment, after a look at the file's date once a second.
func (h *Htpasswd) current() map[string]string {
	h.mu.Lock()
	users, seen, due := h.users, h.seen, time.Now().After(h.next)
	if due {
		h.next = time.Now().Add(lookAgain) // one looks, the others go on
	}
	h.mu.Unlock()
	if !due {
		return users
	}
	info, err := os.Stat(h.path)
	if err == nil && info.Size() == seen.size && info.ModTime().Equal(seen.time) && os.SameFile(info, seen.file) {
		return users
	}
	if err == nil {
		err = h.Reload()
	}
	if err != nil {
		h.log.Error("the users stay as they were", "err", err)
		return users
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.log.Info("users read again", "file", h.path, "users", len(h.users))
	return h.users
}

func (h *Htpasswd) hash(user string) (string, bool) {
	hash, ok := h.current()[user]
	return hash, ok
}

// Has tells whether there is such a user.
func (h *Htpasswd) Has(user string) bool {
	_, ok := h.hash(user)
	return ok
}

// verify compares a password, as slowly for somebody who is not there; errs.Unauthorized.
func (h *Htpasswd) verify(user, password string) (string, error) {
	refused := errs.New(errs.Unauthorized, "incorrect username or password")
	hash, ok := h.hash(user)
	if !ok {
		_ = bcrypt.CompareHashAndPassword(h.dummy, []byte(password))
		return "", refused
	}
	err := bcrypt.CompareHashAndPassword([]byte(hash), []byte(password))
	if errors.Is(err, bcrypt.ErrMismatchedHashAndPassword) || len(password) > maxPassword {
		return "", refused
	}
	if err != nil {
		return "", fmt.Errorf("user %s: %w", user, err)
	}
	return hash, nil
}
