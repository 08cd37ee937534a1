package plugin

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"corten.dev/corten/internal/errs"
)

// place is where a plugin is to be reached.
type place struct {
	network string // "unix" or "tcp"
	addr    string // a path, or host:port
	tls     *TLS   // nil: plain
	mark    mark   // of the socket or file it was found by
}

// mark is what a plugin was found by: another one when the plugin made its socket anew, or someone wrote its file.
type mark struct {
	path string
	info fs.FileInfo
}

func (m mark) same(o mark) bool {
	return m.path == o.path && m.info != nil && o.info != nil && os.SameFile(m.info, o.info) && m.info.ModTime().Equal(o.info.ModTime())
}

// TLS is how a plugin's certificate is checked, and which one it is shown.
type TLS struct {
	InsecureSkipVerify bool
	CAFile             string // empty: the authorities that the host trusts
	CertFile, KeyFile  string // both or none
}

// Names lists the plugins for which there is a socket or a file, sorted. A folder that is not there is no error.
func (s *Set) Names() ([]string, error) {
	var names []string
	var all []error
	for _, folder := range s.opts.Folders {
		entries, err := os.ReadDir(folder)
		if err != nil {
			if !errors.Is(err, fs.ErrNotExist) {
				all = append(all, fmt.Errorf("look for plugins: %w", err))
			}
			continue
		}
		for _, e := range entries {
			name := e.Name()
			if ext := filepath.Ext(name); ext == ".sock" || ext == ".spec" || ext == ".json" {
				name = strings.TrimSuffix(name, ext)
			} else if !e.IsDir() {
				continue
			}
			if CheckName(name) == nil && (!e.IsDir() || s.hasOwn(folder, name)) {
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names), errors.Join(all...)
}

// hasOwn tells whether a plugin has a folder of its own.
func (s *Set) hasOwn(folder, name string) bool {
	return slices.ContainsFunc([]string{".sock", ".spec", ".json"}, func(ext string) bool {
		_, err := os.Stat(filepath.Join(folder, name, name+ext))
		return err == nil
	})
}

// find looks for a plugin: errs.NotFound when there is no trace of it, another error when its file is no good.
func (s *Set) find(name string) (place, error) {
	for _, ext := range []string{".sock", ".spec", ".json"} {
		for _, folder := range s.opts.Folders {
			for _, path := range []string{filepath.Join(folder, name+ext), filepath.Join(folder, name, name+ext)} {
				info, err := os.Stat(path)
				if err != nil {
					continue // not there, or nothing that this engine may see
				}
				if at, ok, err := readPlace(path, ext, info); ok || err != nil {
					return at, err
				}
			}
		}
	}
	return place{}, errs.New(errs.NotFound, "plugin %q not found", name)
}

func readPlace(path, ext string, info fs.FileInfo) (at place, ok bool, err error) {
	mark := mark{path: path, info: info}
	if ext == ".sock" {
		return place{network: "unix", addr: path, mark: mark}, info.Mode().Type() == fs.ModeSocket, nil
	}
	if !info.Mode().IsRegular() { // a pipe would never end
		return place{}, false, nil
	}
	text, err := readFile(path)
	if err == nil && ext == ".spec" {
		at, err = parseSpec(text)
	} else if err == nil {
		at, err = parseJSON(text)
	}
	if err != nil {
		return place{}, false, fmt.Errorf("read %s: %w", path, err)
	}
	at.mark = mark
	return at, true, nil
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // read only
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(text) > maxFile {
		err = errs.New(errs.Invalid, "larger than %d bytes", maxFile)
	}
	return text, err
}

// parseSpec reads a .spec file: an address and nothing else.
func parseSpec(text []byte) (place, error) { return parseAddress(strings.TrimSpace(string(text)), nil) }

// parseJSON reads a .json file.
func parseJSON(text []byte) (place, error) {
	var file struct {
		Name      string // says nothing that the file's name does not say
		Addr      string
		TLSConfig *TLS
	}
	if err := json.Unmarshal(text, &file); err != nil {
		return place{}, errs.As(errs.Invalid, err)
	}
	if t := file.TLSConfig; t != nil && (t.CertFile == "") != (t.KeyFile == "") {
		return place{}, errs.New(errs.Invalid, "TLSConfig: CertFile and KeyFile belong together")
	}
	return parseAddress(file.Addr, file.TLSConfig)
}

// parseAddress reads an address. With a TLSConfig, tcp means TLS as well; a path behind a host is not looked at, as by Docker.
func parseAddress(addr string, conf *TLS) (place, error) {
	u, err := url.Parse(addr)
	if err != nil {
		return place{}, errs.As(errs.Invalid, err)
	}
	switch u.Scheme {
	case "unix":
		path := filepath.Clean(u.Path)
		if u.Host != "" || !filepath.IsAbs(path) || strings.ContainsRune(path, 0) {
			return place{}, errs.New(errs.Invalid, "address %q: unix:// takes an absolute path", addr)
		}
		return place{network: "unix", addr: path}, nil
	case "tcp", "http", "https":
		if u.Hostname() == "" || strings.ContainsAny(u.Hostname(), "[]/\x00") || u.User != nil {
			return place{}, errs.New(errs.Invalid, "address %q: not %s://host:port", addr, u.Scheme)
		}
		port := u.Port()
		switch {
		case u.Scheme == "http":
			conf = nil
		case u.Scheme == "https" && conf == nil:
			conf = &TLS{}
		}
		if port == "" && u.Scheme == "http" {
			port = "80"
		} else if port == "" && u.Scheme == "https" {
			port = "443"
		}
		if port == "" {
			return place{}, errs.New(errs.Invalid, "address %q: not tcp://host:port", addr)
		}
		return place{network: "tcp", addr: net.JoinHostPort(u.Hostname(), port), tls: conf}, nil
	}
	return place{}, errs.New(errs.Invalid, "address %q: not one of unix://, tcp://, http://, https://", addr)
}
