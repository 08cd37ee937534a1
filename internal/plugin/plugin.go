// Package plugin speaks the protocol by which programs outside the engine serve it: volume drivers, network drivers, address management, authorization.
//
// It owns how a plugin is found by its name, greeted and called. It knows no noun of the engine: what is called, and with which bodies, is the business of the
// room that asks. It promises that a plugin that is away, slow, broken or hostile costs those who asked for it an error within a bound, and nobody else anything;
// that a call which may have reached the plugin is repeated only where the caller said that this does no harm; and that a plugin which was started again is found again.
//
// A plugin NAME is found in folders, in this order; a folder of its own below each, as in FOLDER/NAME/NAME.sock, does as well:
//
//	FOLDER/NAME.sock    it listens on this socket
//	FOLDER/NAME.spec    the file holds an address: unix:///path, tcp://host:port, http://host:port, https://host:port
//	FOLDER/NAME.json    {"Name": …, "Addr": an address, "TLSConfig": {"InsecureSkipVerify": …, "CAFile": …, "CertFile": …, "KeyFile": …}}
//
// Sockets of all folders come before files of any. A call:
//
//	engine                                          plugin
//	  │ POST /Plugin.Activate ───────────────────────▶│   once for each start of the plugin
//	  │◀─────────────── {"Implements": ["VolumeDriver"]}
//	  │ POST /VolumeDriver.Mount {"Name": …} ────────▶│   one connection for each call
//	  │◀──────────────── {"Mountpoint": …, "Err": ""} │   or another status than 200, with {"Err": …} or plain text
//
// The protocol as published: https://docs.docker.com/engine/extend/plugin_api/, media type application/vnd.docker.plugins.v1.2+json.
package plugin

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"corten.dev/corten/internal/errs"
)

// MediaType is what the engine accepts.
const MediaType = "application/vnd.docker.plugins.v1.2+json"

// How long things may take, and how large they may be. A caller's context may end all of it earlier.
const (
	// CallTime is how long a plugin may take for one answer where the caller names no limit.
	CallTime = time.Minute
	// GreetTime is how long a plugin that was reached may take to say what it implements.
	GreetTime = 10 * time.Second
	// WaitTime is how long a plugin is waited for that is known (there is a socket or a file, or it was there before) and cannot be reached.
	WaitTime = 15 * time.Second
	// LookTime is how long a plugin is looked for of which there is no trace.
	LookTime = 2 * time.Second
	// RestTime is how long Ready leaves a plugin alone that did not answer; twice as long each time, up to maxRest.
	RestTime = 30 * time.Second
	maxRest  = 2 * time.Minute

	dialTime  = 5 * time.Second
	firstWait = 20 * time.Millisecond // before a plugin is tried again; doubled each time
	lastWait  = 2 * time.Second

	maxAnswer = 16 << 20 // of a List with very many volumes
	maxText   = 2 << 10  // of an error that is no JSON
	maxFile   = 64 << 10 // of a .spec or .json
	maxName   = 200
	laneWidth = 64 // calls of one plugin at a time
)

// Options are the settings of a Set.
type Options struct {
	// Folders are looked through for plugins, the first one first.
	Folders []string
	// Wait and Look take the place of WaitTime and LookTime. Zero means those; less than zero means not at all.
	Wait, Look time.Duration
	// Warn is told once when a plugin is waited for. It may be nil.
	Warn func(plugin string, err error)
}

// Folders are the places where plugins are looked for by default: those below an engine's exec-root and Docker's.
func Folders(execRoot string) []string {
	return []string{
		filepath.Join(execRoot, "plugins"), "/run/docker/plugins",
		"/etc/corten/plugins", "/usr/lib/corten/plugins", "/etc/docker/plugins", "/usr/lib/docker/plugins",
	}
}

// Set is the plugins of a host. Its methods may be called by several goroutines.
type Set struct {
	opts Options

	mu      sync.Mutex // guards plugins
	plugins map[string]*plugin
}

// New makes a set. Nothing is looked for yet.
func New(opts Options) *Set {
	if opts.Wait == 0 {
		opts.Wait = WaitTime
	}
	if opts.Look == 0 {
		opts.Look = LookTime
	}
	if opts.Warn == nil {
		opts.Warn = func(string, error) {}
	}
	return &Set{opts: opts, plugins: make(map[string]*plugin)}
}

// plugin is what is remembered of one. It is made when it is first asked for and stays.
type plugin struct {
	name  string
	lane  chan struct{} // a token for each call under way
	greet chan struct{} // held by who greets it

	mu       sync.Mutex // guards what follows
	at       place      // where it was greeted
	provides []string   // what it said that it implements; nil: not greeted yet
	rests    time.Time  // Ready leaves it alone until then
	rest     time.Duration
	why      error // what was wrong when it began to rest
}

func (s *Set) plugin(name string) *plugin {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.plugins[name]
	if p == nil {
		p = &plugin{name: name, lane: make(chan struct{}, laneWidth), greet: make(chan struct{}, 1)}
		s.plugins[name] = p
	}
	return p
}

// Active names the plugins that were greeted and implement an interface.
func (s *Set) Active(iface string) []string {
	s.mu.Lock()
	all := make([]*plugin, 0, len(s.plugins))
	for _, p := range s.plugins {
		all = append(all, p)
	}
	s.mu.Unlock()
	var names []string
	for _, p := range all {
		p.mu.Lock()
		if slices.Contains(p.provides, iface) {
			names = append(names, p.name)
		}
		p.mu.Unlock()
	}
	slices.Sort(names)
	return names
}

// Error is what a plugin said that is wrong. It was reached, and knows of the call.
type Error struct {
	Plugin string
	Method string // "VolumeDriver.Mount"
	Status int    // of HTTP; 200 when the answer's Err says it
	Text   string
}

// Error is the plugin's own text where it has one: users look for it in the plugin's documents.
func (e *Error) Error() string {
	switch {
	case e.Status == 200:
		return e.Text
	case e.Text == "":
		return fmt.Sprintf("plugin %s: %s: status %d", e.Plugin, e.Method, e.Status)
	}
	return fmt.Sprintf("%s: %s", e.Method, e.Text)
}

// Unknown tells whether a plugin does not have the method that was called.
func Unknown(err error) bool {
	var e *Error
	return errors.As(err, &e) && e.Status == 404
}

// Uncertain tells whether a call that failed may have been carried out: it was sent, and no answer came that makes sense.
func Uncertain(err error) bool {
	var u *uncertainError
	return errors.As(err, &u)
}

type uncertainError struct{ err error }

func (u *uncertainError) Error() string { return u.err.Error() }
func (u *uncertainError) Unwrap() error { return u.err }

// CheckName refuses names that are no plugin's: they would lead out of the folders.
func CheckName(name string) error {
	ok := name != "" && len(name) <= maxName
	for i := 0; ok && i < len(name); i++ {
		c := name[i]
		alnum := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		ok = alnum || i > 0 && strings.IndexByte("_.-", c) >= 0
	}
	if ok {
		return nil
	}
	if strings.ContainsAny(name, ":/") && !strings.Contains(name, "..") {
		return errs.New(errs.NotFound, "plugin %q not found: plugins that docker installs from images are not supported; run it on the host, with a socket in a plugin folder", name)
	}
	return errs.New(errs.Invalid, "plugin %q: not a name of a plugin", name)
}
