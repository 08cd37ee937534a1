package remote

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/plugin"
	"corten.dev/corten/internal/plugin/plugintest"
	"corten.dev/corten/internal/volume/driver"
	"corten.dev/corten/internal/volume/driver/drivertest"
)

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: the plugin mounts")
	}
}

// short is a folder for sockets, whose paths may have 107 bytes.
func short(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "rem")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func open(t *testing.T, folder, name string) *Driver {
	t.Helper()
	d, err := New(plugin.New(plugin.Options{Folders: []string{folder}, Wait: 10 * time.Second}), name)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// Plugins on Docker's own library, as separate processes, by socket and by TLS with certificates on both sides.
func TestPlugins(t *testing.T) {
	needRoot(t)
	program := plugintest.Build(t, "volume")
	t.Run("Socket", func(t *testing.T) {
		dir := short(t)
		p := plugintest.StartVolume(t, program, filepath.Join(dir, "own", "own.sock"), "-scope", "global")
		d := open(t, dir, "own")
		drivertest.Run(t, d)
		if caps, err := d.Capabilities(t.Context()); err != nil || !caps.Global {
			t.Errorf("%+v, %v", caps, err)
		}
		if left := plugintest.MountsBelow(t, p.Root); len(left) > 0 {
			t.Errorf("mounted at the end: %q", left)
		}
	})
	t.Run("TLS", func(t *testing.T) { overTLS(t, program) })
	t.Run("Bad", func(t *testing.T) { misbehaving(t, program) })
	t.Run("Killed", func(t *testing.T) { killed(t, program) })
}

func overTLS(t *testing.T, program string) {
	certs := certificates(t)
	root := t.TempDir()
	p := plugintest.Start(t, program, "-tcp", "127.0.0.1:0", "-root", root, "-cert", certs+"/server.pem", "-key", certs+"/server.key", "-ca", certs+"/ca.pem")
	dir := short(t)
	for name, conf := range map[string]any{
		"good":    map[string]any{"CAFile": certs + "/ca.pem", "CertFile": certs + "/client.pem", "KeyFile": certs + "/client.key"},
		"trusts":  map[string]any{"InsecureSkipVerify": true, "CertFile": certs + "/client.pem", "KeyFile": certs + "/client.key"},
		"nobody":  map[string]any{"CAFile": certs + "/ca.pem"},
		"unknown": map[string]any{"CertFile": certs + "/client.pem", "KeyFile": certs + "/client.key"},
		"lost":    map[string]any{"CAFile": certs + "/none.pem"},
	} {
		text, err := json.Marshal(map[string]any{"Name": name, "Addr": "tcp://" + p.Address, "TLSConfig": conf})
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name+".json"), text, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	drivertest.Run(t, open(t, dir, "good"))
	drivertest.Run(t, open(t, dir, "trusts"))
	for name, text := range map[string]string{"nobody": "certificate required", "unknown": "certificate signed by unknown authority", "lost": "none.pem: no such file"} {
		if _, err := open(t, dir, name).List(t.Context()); !errors.Is(err, errs.Unavailable) || !strings.Contains(err.Error(), text) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func misbehaving(t *testing.T, program string) {
	dir := short(t)
	p := plugintest.StartVolume(t, program, filepath.Join(dir, "bad.sock"))
	d := open(t, dir, "bad")
	if err := d.Create(t.Context(), "vol", nil); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		mode, text string
		uncertain  bool
	}{
		{"close", "plugin bad: VolumeDriver.Mount: the connection broke before the answer", true},
		{"json", "plugin bad: VolumeDriver.Mount: an answer that makes no sense", true},
		{"html", "plugin bad: VolumeDriver.Mount: an answer that makes no sense", true},
		{"huge", "plugin bad: VolumeDriver.Mount: an answer of more than", true},
		{"rel", `the mount point "../../etc" is not an absolute path`, true},
		{"status", "VolumeDriver.Mount: come back later", false},
	} {
		p.Bad("Mount " + c.mode)
		_, err := d.Mount(t.Context(), "vol", "id")
		if err == nil || !strings.Contains(err.Error(), c.text) || errors.Is(err, driver.Uncertain) != c.uncertain {
			t.Errorf("%s: %v", c.mode, err)
		}
	}
	p.Bad("Mount type", "Unmount slow")
	if _, err := d.Mount(t.Context(), "vol", "id"); err != nil {
		t.Errorf("the type of an answer does not matter: %v", err)
	}
	if err := d.Unmount(t.Context(), "vol", "id"); err != nil {
		t.Errorf("slow: %v", err)
	}
	p.Bad("Mount never")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if _, err := d.Mount(ctx, "vol", "id"); !errors.Is(err, driver.Uncertain) {
		t.Errorf("never: %v", err)
	}
	if vol, err := d.Get(t.Context(), "vol"); err != nil || vol.Status["users"] != 0.0 {
		t.Errorf("its other calls: %+v, %v", vol, err)
	}
}

// A plugin is killed in the middle of a call, and started again by somebody.
func killed(t *testing.T, program string) {
	dir := short(t)
	p := plugintest.StartVolume(t, program, filepath.Join(dir, "dies.sock"))
	d := open(t, dir, "dies")
	if err := d.Create(t.Context(), "vol", nil); err != nil {
		t.Fatal(err)
	}
	p.Bad("Mount crash")
	if _, err := d.Mount(t.Context(), "vol", "id"); !errors.Is(err, driver.Uncertain) {
		t.Errorf("crash: %v", err)
	}
	p.Dead()
	p.Bad()
	if _, err := d.Get(t.Context(), "vol"); !errors.Is(err, errs.Unavailable) || errors.Is(err, driver.Uncertain) || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("while it is away: %v", err)
	}
	mounted := make(chan error, 1)
	go func() {
		_, err := d.Mount(t.Context(), "vol", "id")
		mounted <- err
	}()
	p.Up()
	if err := <-mounted; err != nil { // it waited
		t.Error(err)
	}
	p.Bad("Unmount done")
	if err := d.Unmount(t.Context(), "vol", "id"); !errors.Is(err, errs.Unavailable) { // carried out, but not answered, and the plugin is away
		t.Error(err)
	}
	p.Dead()
	p.Bad()
	p.Up()
	if err := d.Unmount(t.Context(), "vol", "id"); err == nil || !strings.Contains(err.Error(), "volume vol is not mounted for id") {
		t.Errorf("unmounted twice: %v", err)
	}
	if n := p.Mounted("vol"); len(n) != 0 {
		t.Errorf("counts %v", n)
	}
}

// Answers that plugins really give, though the protocol does not say so.
func TestOddAnswers(t *testing.T) {
	dir := short(t)
	answers := map[string]string{
		"Plugin.Activate":   `{"Implements": ["VolumeDriver"]}`,
		"VolumeDriver.List": `{"Volumes": [null, {"Name": ""}, {"Name": "bad\nname"}, {"Name": "rel", "Mountpoint": "x"}, {"Name": "good", "CreatedAt": "yesterday"}]}`,
		"VolumeDriver.Get":  `{"Volume": null}`, "VolumeDriver.Path": `{"Mountpoint": "/a/../b"}`, "VolumeDriver.Mount": `{}`, "VolumeDriver.Create": `null`,
	}
	l, err := net.Listen("unix", filepath.Join(dir, "odd.sock"))
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer, ok := answers[r.URL.Path[1:]]
		if !ok {
			http.NotFound(w, r)
		}
		w.Write([]byte(answer))
	})}
	go server.Serve(l)
	t.Cleanup(func() { server.Close() })
	d := open(t, dir, "odd")
	if list, err := d.List(t.Context()); err != nil || len(list) != 1 || list[0].Name != "good" {
		t.Errorf("%+v, %v", list, err)
	}
	if _, err := d.Get(t.Context(), "vol"); !errors.Is(err, errs.NotFound) {
		t.Error(err)
	}
	if path, err := d.Path(t.Context(), "vol"); err != nil || path != "/b" {
		t.Error(path, err)
	}
	if _, err := d.Mount(t.Context(), "vol", "id"); !errors.Is(err, driver.Uncertain) || !strings.Contains(err.Error(), "no mount point") {
		t.Error(err)
	}
	if err := d.Create(t.Context(), "vol", nil); err != nil {
		t.Error(err)
	}
	if caps, err := d.Capabilities(t.Context()); err != nil || caps.Global { // a plugin from before that call
		t.Error(caps, err)
	}
}

// certificates makes an authority, a server and a client.
func certificates(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	put := func(name, kind string, der []byte) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var ca *x509.Certificate
	var caKey *ecdsa.PrivateKey
	for i, name := range []string{"ca", "server", "client"} {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		tmpl := &x509.Certificate{
			SerialNumber: big.NewInt(int64(i + 1)), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
			IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
			IsCA: name == "ca", BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		}
		if ca == nil {
			ca, caKey = tmpl, key
		}
		der, err := x509.CreateCertificate(rand.Reader, tmpl, ca, &key.PublicKey, caKey)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := x509.MarshalECPrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		put(name+".pem", "CERTIFICATE", der)
		put(name+".key", "EC PRIVATE KEY", raw)
	}
	return dir
}

// Whatever a plugin answers, mount points are absolute paths and volumes have names; else it is an error of one line.
func FuzzReplies(f *testing.F) {
	for _, seed := range []string{
		`{"Mountpoint": "/mnt"}`, `{"Volume": {"Name": "v", "Mountpoint": "/x", "Status": {"a": [1]}}}`, `{"Volumes": [{"Name": "v"}, null]}`, `{"Volumes": {}}`, `{"Err": "no"}`, `{"Capabilities": {"Scope": "global"}}`, `[]`, ``,
		`{"Mountpoint": "../x"}`, `{"Volume": {"CreatedAt": 7}}`,
	} {
		f.Add([]byte(seed))
	}
	dir, err := os.MkdirTemp("", "fuz")
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { os.RemoveAll(dir) })
	l, err := net.Listen("unix", filepath.Join(dir, "p.sock"))
	if err != nil {
		f.Fatal(err)
	}
	var mu sync.Mutex
	var body []byte
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if r.URL.Path == "/Plugin.Activate" {
			w.Write([]byte(`{"Implements": ["VolumeDriver"]}`))
			return
		}
		w.Write(body)
	})}
	go server.Serve(l)
	f.Cleanup(func() { server.Close() })
	d, err := New(plugin.New(plugin.Options{Folders: []string{dir}}), "p")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, answer []byte) {
		mu.Lock()
		body = answer
		mu.Unlock()
		check := func(path string, err error, empty bool) {
			if err == nil && (path != "" || !empty) && (!filepath.IsAbs(path) || filepath.Clean(path) != path) {
				t.Errorf("%q: path %q", answer, path)
			}
			if err != nil && strings.ContainsAny(err.Error(), "\r\n\x00") {
				t.Errorf("%q: more than a line: %q", answer, err)
			}
		}
		path, err := d.Mount(t.Context(), "v", "i")
		check(path, err, false)
		path, err = d.Path(t.Context(), "v")
		check(path, err, true)
		vol, err := d.Get(t.Context(), "v")
		check(vol.Mountpoint, err, true)
		list, err := d.List(t.Context())
		check("", err, true)
		for _, vol := range list {
			check(vol.Mountpoint, nil, true)
			if driver.CheckName(vol.Name) != nil {
				t.Errorf("%q: name %q", answer, vol.Name)
			}
		}
		_, err = d.Capabilities(t.Context())
		check("", err, true)
	})
}
