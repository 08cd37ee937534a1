// Command volume is a volume plugin for tests, on Docker's own library for plugins. It keeps its volumes as folders and mounts them with bind mounts, one for all users of a volume, and counts the users;
// what it counts is on disk, so that it may be killed at any moment.
//
//	<root>/vols/<name>     the volume
//	<root>/mnt/<name>      where it is mounted while anyone uses it
//	<root>/state.json      volumes, options, and the ids that mounted
//	<root>/calls           a line for each call: "Mount name id"
//	<root>/bad             lines "METHOD MODE": how it misbehaves (see bad.go); may be changed at any time
package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/docker/go-plugins-helpers/volume"

	"corten.dev/corten/internal/plugin/plugintest/testdata/bad"
)

func main() {
	socket := flag.String("socket", "", "listen on this socket")
	tcp := flag.String("tcp", "", "listen on this address")
	cert, key, ca := flag.String("cert", "", ""), flag.String("key", "", ""), flag.String("ca", "", "who signs clients")
	root := flag.String("root", "", "folder of everything")
	scope := flag.String("scope", "local", "")
	flag.Parse()
	if err := run(*socket, *tcp, *cert, *key, *ca, *root, *scope); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(socket, tcp, cert, key, ca, root, scope string) error {
	d := &plugin{root: root, scope: scope, Volumes: map[string]*vol{}}
	if err := d.load(); err != nil {
		return err
	}
	var l net.Listener
	var err error
	if tcp != "" {
		l, err = net.Listen("tcp", tcp)
	} else {
		if err := os.Remove(socket); err != nil && !os.IsNotExist(err) { // that of a plugin that was killed
			return err
		}
		l, err = net.Listen("unix", socket)
	}
	if err != nil {
		return err
	}
	l = &bad.Listener{Listener: l, Root: root}
	if cert != "" {
		conf, err := serverTLS(cert, key, ca)
		if err != nil {
			return err
		}
		l = tls.NewListener(l, conf)
	}
	fmt.Println(l.Addr())
	return volume.NewHandler(d).Serve(l)
}

func serverTLS(cert, key, ca string) (*tls.Config, error) {
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		return nil, err
	}
	pem, err := os.ReadFile(ca)
	if err != nil {
		return nil, err
	}
	conf := &tls.Config{Certificates: []tls.Certificate{pair}, ClientCAs: x509.NewCertPool(), ClientAuth: tls.RequireAndVerifyClientCert}
	conf.ClientCAs.AppendCertsFromPEM(pem)
	return conf, nil
}

type vol struct {
	Options map[string]string
	Created time.Time
	IDs     map[string]int
}

type plugin struct {
	root, scope string

	mu      sync.Mutex
	Volumes map[string]*vol
}

func (d *plugin) load() error {
	if err := os.MkdirAll(filepath.Join(d.root, "vols"), 0o755); err != nil {
		return err
	}
	text, err := os.ReadFile(filepath.Join(d.root, "state.json"))
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return err
	}
	return json.Unmarshal(text, &d.Volumes)
}

func (d *plugin) save() error {
	text, err := json.MarshalIndent(d.Volumes, "", " ")
	if err != nil {
		return err
	}
	aside := filepath.Join(d.root, "state.tmp")
	return errors.Join(os.WriteFile(aside, text, 0o600), os.Rename(aside, filepath.Join(d.root, "state.json")))
}

func (d *plugin) note(words ...any) {
	f, err := os.OpenFile(filepath.Join(d.root, "calls"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return
	}
	fmt.Fprintln(f, words...)
	f.Close()
}

func (d *plugin) data(name string) string  { return filepath.Join(d.root, "vols", url.PathEscape(name)) }
func (d *plugin) mount(name string) string { return filepath.Join(d.root, "mnt", url.PathEscape(name)) }

func (d *plugin) find(name string) (*vol, error) {
	if v := d.Volumes[name]; v != nil {
		return v, nil
	}
	return nil, fmt.Errorf("volume %s is not here", name)
}

func (d *plugin) Create(r *volume.CreateRequest) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.note("Create", r.Name)
	if d.Volumes[r.Name] != nil {
		return nil
	}
	if r.Options["refuse"] != "" {
		return errors.New(r.Options["refuse"])
	}
	if err := os.MkdirAll(d.data(r.Name), 0o755); err != nil {
		return err
	}
	d.Volumes[r.Name] = &vol{Options: r.Options, Created: time.Now().UTC(), IDs: map[string]int{}}
	return d.save()
}

func (d *plugin) Remove(r *volume.RemoveRequest) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.note("Remove", r.Name)
	v, err := d.find(r.Name)
	if err != nil {
		return err
	}
	if len(v.IDs) > 0 {
		return fmt.Errorf("volume %s is mounted", r.Name)
	}
	delete(d.Volumes, r.Name)
	return errors.Join(os.RemoveAll(d.data(r.Name)), d.save())
}

func (d *plugin) Mount(r *volume.MountRequest) (*volume.MountResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.note("Mount", r.Name, r.ID)
	v, err := d.find(r.Name)
	if err != nil {
		return nil, err
	}
	at := d.mount(r.Name)
	if len(v.IDs) == 0 {
		if err := os.MkdirAll(at, 0o755); err != nil {
			return nil, err
		}
		if err := syscall.Mount(d.data(r.Name), at, "", syscall.MS_BIND, ""); err != nil {
			return nil, fmt.Errorf("mount %s: %w", r.Name, err)
		}
	}
	v.IDs[r.ID]++
	return &volume.MountResponse{Mountpoint: at}, d.save()
}

func (d *plugin) Unmount(r *volume.UnmountRequest) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.note("Unmount", r.Name, r.ID)
	v, err := d.find(r.Name)
	if err != nil {
		return err
	}
	if v.IDs[r.ID] == 0 {
		return fmt.Errorf("volume %s is not mounted for %s", r.Name, r.ID)
	}
	if v.IDs[r.ID]--; v.IDs[r.ID] == 0 {
		delete(v.IDs, r.ID)
	}
	if len(v.IDs) == 0 {
		if err := syscall.Unmount(d.mount(r.Name), syscall.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount %s: %w", r.Name, err)
		}
	}
	return d.save()
}

func (d *plugin) where(name string, v *vol) string {
	if len(v.IDs) == 0 {
		return ""
	}
	return d.mount(name)
}

func (d *plugin) Path(r *volume.PathRequest) (*volume.PathResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	v, err := d.find(r.Name)
	if err != nil {
		return nil, err
	}
	return &volume.PathResponse{Mountpoint: d.where(r.Name, v)}, nil
}

func (d *plugin) Get(r *volume.GetRequest) (*volume.GetResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	v, err := d.find(r.Name)
	if err != nil {
		return nil, err
	}
	users := 0
	for _, n := range v.IDs {
		users += n
	}
	return &volume.GetResponse{Volume: &volume.Volume{
		Name: r.Name, Mountpoint: d.where(r.Name, v), CreatedAt: v.Created.Format(time.RFC3339), Status: map[string]any{"users": users, "size": v.Options["size"]},
	}}, nil
}

func (d *plugin) List() (*volume.ListResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var out volume.ListResponse
	for name, v := range d.Volumes {
		out.Volumes = append(out.Volumes, &volume.Volume{Name: name, Mountpoint: d.where(name, v)})
	}
	return &out, nil
}

func (d *plugin) Capabilities() *volume.CapabilitiesResponse {
	return &volume.CapabilitiesResponse{Capabilities: volume.Capability{Scope: d.scope}}
}
