// Package credentials is what a person knows about registries: docker's config.json (auths, credHelpers, credsStore) and the helper programs that it names.
//
// It owns the three keys of that file, and nothing else in it: every other key stays as it is. It promises that the file is replaced as a whole and readable by its owner
// only, that secrets go to helpers by their standard input, and that no secret is ever in an error or in the arguments of a process.
package credentials

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"corten.dev/corten/internal/errs"
)

// DefaultServer is the key that Docker Hub's credentials are kept under.
const DefaultServer = "https://index.docker.io/v1/"

// Auth is what is known about one registry, in the form that the engine takes it.
type Auth struct {
	Username      string `json:"username,omitempty"`
	Password      string `json:"password,omitempty"`
	ServerAddress string `json:"serveraddress,omitempty"`
	IdentityToken string `json:"identitytoken,omitempty"`
	RegistryToken string `json:"registrytoken,omitempty"`
}

// Empty tells whether nothing is known.
func (a Auth) Empty() bool {
	return a.Username == "" && a.Password == "" && a.IdentityToken == "" && a.RegistryToken == ""
}

// Header is the value of X-Registry-Auth.
func (a Auth) Header() string {
	data, err := json.Marshal(a)
	if err != nil {
		return "" // strings always marshal
	}
	return base64.URLEncoding.EncodeToString(data)
}

// File is docker's configuration file.
type File struct {
	path    string
	keys    map[string]json.RawMessage
	auths   map[string]entry
	helpers map[string]string
	store   string
}

// entry is one registry in auths.
type entry struct {
	Auth          string `json:"auth,omitempty"`
	Username      string `json:"username,omitempty"`
	Password      string `json:"password,omitempty"`
	Email         string `json:"email,omitempty"`
	IdentityToken string `json:"identitytoken,omitempty"`
	RegistryToken string `json:"registrytoken,omitempty"`
}

// Open reads config.json in dir. A file that is not there is empty.
func Open(dir string) (*File, error) {
	f := &File{path: filepath.Join(dir, "config.json"), keys: map[string]json.RawMessage{}, auths: map[string]entry{}, helpers: map[string]string{}}
	data, err := os.ReadFile(f.path)
	if errors.Is(err, fs.ErrNotExist) {
		return f, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read credentials: %w", err)
	}
	if len(bytes.TrimSpace(data)) == 0 {
		return f, nil
	}
	if err := json.Unmarshal(data, &f.keys); err != nil {
		return nil, errs.New(errs.Invalid, "read %s: %w", f.path, err)
	}
	for key, into := range map[string]any{"auths": &f.auths, "credHelpers": &f.helpers, "credsStore": &f.store} {
		raw, ok := f.keys[key]
		if !ok {
			continue
		}
		if err := json.Unmarshal(raw, into); err != nil {
			return nil, errs.New(errs.Invalid, "read %s: %s is not as it should be", f.path, key) // its values are not repeated
		}
	}
	if f.auths == nil {
		f.auths = map[string]entry{}
	}
	return f, nil
}

// Path is where the file is, or would be.
func (f *File) Path() string { return f.path }

// Nothing tells whether nothing is known about any registry.
func (f *File) Nothing() bool { return len(f.auths) == 0 && len(f.helpers) == 0 && f.store == "" }

// Server is the key for a registry as people name it; the empty name and Hub's names are [DefaultServer].
func Server(name string) string {
	host := hostOf(name)
	switch host {
	case "", "docker.io", "index.docker.io", "registry-1.docker.io":
		return DefaultServer
	}
	return host
}

// hostOf takes scheme and path off a registry's address.
func hostOf(name string) string {
	name = strings.TrimPrefix(strings.TrimPrefix(name, "http://"), "https://")
	host, _, _ := strings.Cut(name, "/")
	return host
}

// helper is the program that keeps a registry's credentials; empty is the file.
func (f *File) helper(server string) string {
	for key, name := range f.helpers {
		if key == server || Server(key) == server {
			return name
		}
	}
	return f.store
}

// Stored tells where Put keeps the credentials of a registry: the name of a helper, or nothing for the file.
func (f *File) Stored(server string) string { return f.helper(server) }

// Get finds what is known about a registry; the zero value when nothing is.
func (f *File) Get(ctx context.Context, server string) (Auth, error) {
	if name := f.helper(server); name != "" {
		auth, err := program(name).get(ctx, server)
		if err == nil && auth.Empty() && server != DefaultServer {
			auth, err = program(name).get(ctx, "https://"+server) // as some tools store it
		}
		auth.ServerAddress = server
		return auth, err
	}
	found, ok := f.auths[server]
	if !ok {
		for key, e := range f.auths { // with a scheme or path, as older versions wrote it
			if Server(key) == server {
				found, ok = e, true
				break
			}
		}
	}
	if !ok {
		return Auth{}, nil
	}
	auth := Auth{Username: found.Username, Password: found.Password, ServerAddress: server, IdentityToken: found.IdentityToken, RegistryToken: found.RegistryToken}
	if found.Auth == "" {
		return auth, nil
	}
	pair, err := base64.StdEncoding.DecodeString(found.Auth)
	user, password, cut := strings.Cut(string(pair), ":")
	if err != nil || !cut || user == "" {
		return Auth{}, errs.New(errs.Invalid, "%s: the credentials for %s cannot be read: log in again", f.path, server)
	}
	auth.Username, auth.Password = user, strings.TrimRight(password, "\x00")
	return auth, nil
}

// Put keeps the credentials of a registry.
func (f *File) Put(ctx context.Context, server string, auth Auth) error {
	if name := f.helper(server); name != "" {
		if err := program(name).store(ctx, server, auth); err != nil {
			return err
		}
		if _, ok := f.auths[server]; ok {
			return nil
		}
		f.auths[server] = entry{} // tells that there is something, as docker does
		return f.write()
	}
	e := entry{IdentityToken: auth.IdentityToken, RegistryToken: auth.RegistryToken}
	if auth.Username != "" || auth.Password != "" {
		e.Auth = base64.StdEncoding.EncodeToString([]byte(auth.Username + ":" + auth.Password))
	}
	f.auths[server] = e
	return f.write()
}

// Delete forgets a registry, under all the names it may be kept by.
func (f *File) Delete(ctx context.Context, server string) error {
	var first error
	if name := f.helper(server); name != "" {
		first = program(name).erase(ctx, server)
	}
	changed := false
	for key := range f.auths {
		if key == server || Server(key) == server {
			delete(f.auths, key)
			changed = true
		}
	}
	if !changed {
		return first
	}
	return errors.Join(first, f.write())
}

// write replaces the file. One that is a link stays one: people keep their configuration elsewhere.
func (f *File) write() (err error) {
	raw, err := json.Marshal(f.auths)
	if err != nil {
		return err
	}
	f.keys["auths"] = raw
	data, err := json.MarshalIndent(f.keys, "", "\t")
	if err != nil {
		return err
	}
	path := f.path
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("keep credentials: %w", err)
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), "config.json.*") // for its owner only
	if err != nil {
		return fmt.Errorf("keep credentials: %w", err)
	}
	_, err = tmp.Write(data)
	err = errors.Join(err, tmp.Sync(), tmp.Close())
	if err == nil {
		keepOwner(tmp.Name(), path)
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("keep credentials: %w", errors.Join(err, os.Remove(tmp.Name())))
	}
	return nil
}
