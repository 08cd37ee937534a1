package access

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"corten.dev/corten/internal/errs"
)

// Keys sign tokens. They lie in a folder, one file each, and may be shared by several registries:
//
//	FOLDER/<kid>.pem   an Ed25519 private key (PKCS #8), mode 0600; kid is the beginning of the public key's SHA-256
//
// The newest one signs. It is followed by a new one after its time (KeysOptions.Rotate); the old ones verify until no token of theirs can be alive.
type Keys struct {
	opts KeysOptions
	mu   sync.Mutex // guards what follows
	keys map[string]*key
	next time.Time // when an unknown kid may be looked for again
}

// KeysOptions describe a folder of keys.
type KeysOptions struct {
	Folder string
	Rotate time.Duration // 0 is 90 days
	Keep   time.Duration // how long a token can live, at most
	Logger *slog.Logger
	Now    func() time.Time
}

type key struct {
	id      string
	private ed25519.PrivateKey
	made    time.Time
}

// OpenKeys reads the folder, and makes the first key.
func OpenKeys(opts KeysOptions) (*Keys, error) {
	if opts.Rotate == 0 {
		opts.Rotate = 90 * 24 * time.Hour
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(opts.Folder, 0o700); err != nil {
		return nil, fmt.Errorf("signing keys: %w", err)
	}
	k := &Keys{opts: opts, keys: map[string]*key{}}
	if err := k.load(); err != nil {
		return nil, err
	}
	if err := k.Rotate(); err != nil {
		return nil, err
	}
	return k, nil
}

// load reads all key files; a broken one is an error, since a token of it would be refused for no reason that anybody sees.
func (k *Keys) load() error {
	entries, err := os.ReadDir(k.opts.Folder)
	if err != nil {
		return fmt.Errorf("signing keys: %w", err)
	}
	found := map[string]*key{}
	for _, e := range entries {
		if id, ok := strings.CutSuffix(e.Name(), ".pem"); ok && !strings.HasPrefix(id, ".") {
			one, err := readKey(filepath.Join(k.opts.Folder, e.Name()), id)
			if errors.Is(err, fs.ErrNotExist) {
				continue // another registry's rotation
			}
			if err != nil {
				return err
			}
			found[id] = one
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.keys = found
	return nil
}

func readKey(path, id string) (*key, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("signing key: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("signing key: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, errs.New(errs.Invalid, "signing key %s can be read by others: chmod 600 it, or remove it if they have seen it", path)
	}
	text := make([]byte, 4096)
	n, err := f.Read(text)
	if err != nil {
		return nil, fmt.Errorf("signing key %s: %w", path, err)
	}
	block, _ := pem.Decode(text[:n])
	if block == nil || block.Type != "PRIVATE KEY" {
		return nil, errs.New(errs.Invalid, "signing key %s is no PEM private key: remove it, a new one is made", path)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	private, ok := parsed.(ed25519.PrivateKey)
	if err != nil || !ok || keyID(private) != id {
		return nil, errs.New(errs.Invalid, "signing key %s is not the Ed25519 key of its name: remove it, a new one is made", path)
	}
	return &key{id: id, private: private, made: info.ModTime()}, nil
}

func keyID(private ed25519.PrivateKey) string {
	sum := sha256.Sum256(private.Public().(ed25519.PublicKey))
	return hex.EncodeToString(sum[:12])
}

// Rotate makes a new key when the newest one is old enough, and removes those that no living token can be signed with.
func (k *Keys) Rotate() error {
	now := k.opts.Now()
	newest := k.newest()
	if newest == nil || now.Sub(newest.made) >= k.opts.Rotate {
		one, err := k.create()
		if err != nil {
			return err
		}
		k.mu.Lock()
		k.keys[one.id] = one
		k.mu.Unlock()
		k.opts.Logger.Info("new signing key", "kid", one.id)
	}
	k.mu.Lock()
	all := make([]*key, 0, len(k.keys))
	for _, one := range k.keys {
		all = append(all, one)
	}
	k.mu.Unlock()
	slices.SortFunc(all, func(a, b *key) int { return b.made.Compare(a.made) })
	for i := 1; i < len(all); i++ {
		if now.Sub(all[i-1].made) < k.opts.Keep { // it signed until the next one was made
			continue
		}
		if err := os.Remove(filepath.Join(k.opts.Folder, all[i].id+".pem")); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("signing key: %w", err)
		}
		k.mu.Lock()
		delete(k.keys, all[i].id)
		k.mu.Unlock()
	}
	return nil
}

// create writes a key aside, flushed, and then gives it its name.
func (k *Keys) create() (*key, error) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, err
	}
	one := &key{id: keyID(private), private: private, made: k.opts.Now()}
	f, err := os.CreateTemp(k.opts.Folder, ".new-*.pem") // mode 0600
	if err != nil {
		return nil, fmt.Errorf("signing key: %w", err)
	}
	err = pem.Encode(f, &pem.Block{Type: "PRIVATE KEY", Bytes: der})
	err = errors.Join(err, f.Sync(), f.Close(), os.Chtimes(f.Name(), one.made, one.made))
	if err == nil {
		err = os.Rename(f.Name(), filepath.Join(k.opts.Folder, one.id+".pem"))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("signing key: %w", err), os.Remove(f.Name()))
	}
	dir, err := os.Open(k.opts.Folder)
	if err != nil {
		return nil, fmt.Errorf("signing key: %w", err)
	}
	if err := errors.Join(dir.Sync(), dir.Close()); err != nil {
		return nil, fmt.Errorf("signing key: %w", err)
	}
	return one, nil
}

func (k *Keys) newest() *key {
	k.mu.Lock()
	defer k.mu.Unlock()
	var newest *key
	for _, one := range k.keys {
		if newest == nil || one.made.After(newest.made) {
			newest = one
		}
	}
	return newest
}

// find gives the key of a kid; one that is unknown is looked for in the folder, where another registry may have put it, once a second.
func (k *Keys) find(id string) *key {
	k.mu.Lock()
	one, now := k.keys[id], time.Now()
	look := one == nil && now.After(k.next)
	if look {
		k.next = now.Add(time.Second)
	}
	k.mu.Unlock()
	if !look {
		return one
	}
	if err := k.load(); err != nil {
		k.opts.Logger.Error("the signing keys stay as they were", "err", err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.keys[id]
}
