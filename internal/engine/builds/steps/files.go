package steps

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"sync"

	"github.com/moby/buildkit/solver/pb"

	"corten.dev/corten/internal/errs"
)

// files are the generated files of steps. Steps cannot write them, so equal ones are shared, and lie under the digest of what is in them.
type files struct {
	dir   string
	mu    sync.Mutex
	known map[string]bool
}

// maxKnown bounds how many there are: build arguments may give every step other hosts.
const maxKnown = 256

// path is where a file with this content lies.
func (f *files) path(content []byte) (string, error) {
	sum := sha256.Sum256(content)
	path := filepath.Join(f.dir, hex.EncodeToString(sum[:]))
	f.mu.Lock()
	defer f.mu.Unlock() // over a small write: the next one may want the same file
	if f.known[path] {
		return path, nil
	}
	if f.known == nil || len(f.known) >= maxKnown { // a step that is being made may lose its file to this: it opens it within a millisecond, and then holds it
		if err := f.clear(); err != nil {
			return "", err
		}
	}
	if err := os.WriteFile(path+".new", content, 0o644); err != nil {
		return "", err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return "", err
	}
	f.known[path] = true
	return path, nil
}

// clear removes all. mu is held.
func (f *files) clear() error {
	entries, err := os.ReadDir(f.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.Remove(filepath.Join(f.dir, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	f.known = map[string]bool{}
	return nil
}

// hosts is the content of /etc/hosts.
func hosts(hostname string, extra []*pb.HostIP, gateway netip.Addr) ([]byte, error) {
	var b bytes.Buffer
	fmt.Fprintf(&b, "127.0.0.1\tlocalhost %s\n::1\tlocalhost ip6-localhost ip6-loopback\n", hostname)
	for _, h := range extra {
		ip := h.GetIP()
		if ip == "host-gateway" {
			if !gateway.IsValid() {
				return nil, errs.New(errs.Unavailable, "unable to derive the IP value for host-gateway")
			}
			ip = gateway.String()
		}
		if _, err := netip.ParseAddr(ip); err != nil {
			return nil, errs.New(errs.Invalid, "invalid IP address in add-host: %q", ip)
		}
		fmt.Fprintf(&b, "%s\t%s\n", ip, h.GetHost())
	}
	return b.Bytes(), nil
}
