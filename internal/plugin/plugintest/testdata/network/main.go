// Command network is a network driver and an address manager for tests, on Docker's own library for plugins. Its networks are bridges of the kernel, its endpoints veths; it hands out the addresses
// of its pools from the first to the last. What it has is on disk, so that it may be killed at any moment.
//
//	<root>/state.json      networks, endpoints, pools
//	<root>/calls           a line for each call: its name and its body
//	<root>/bad             lines "METHOD MODE": how it misbehaves (see bad.go); may be changed at any time
//
// Options of networks (-o): gateway=none (Join names none), gateway=off (none, and nobody else's either), routes=SUBNET[@NEXTHOP],… (static routes), prefix=NAME (of interfaces),
// mac=own (it chooses hardware addresses), noif=1 (endpoints without an interface), key=1 (it wants to see the container's namespace). Of pools (--ipam-opt): gateway=ADDRESS/BITS (named with the pool).
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/docker/go-plugins-helpers/ipam"
	"github.com/docker/go-plugins-helpers/network"
	"github.com/docker/go-plugins-helpers/sdk"

	"corten.dev/corten/internal/plugin/plugintest/testdata/bad"
)

func main() {
	socket := flag.String("socket", "", "listen on this socket")
	root := flag.String("root", "", "folder of everything")
	scope := flag.String("scope", "local", "")
	mac := flag.Bool("mac", false, "addresses need a hardware address")
	replay := flag.Bool("replay", false, "forget all addresses at the start, and say so")
	nogw := flag.Bool("nogw", false, "say, when asked before a network is made, that it needs no gateway in IPv4")
	flag.Parse()
	if err := run(*socket, &state{root: *root, scope: *scope, mac: *mac, replay: *replay, nogw: *nogw}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(socket string, s *state) error {
	if err := s.load(); err != nil {
		return err
	}
	if err := os.Remove(socket); err != nil && !os.IsNotExist(err) { // that of a plugin that was killed
		return err
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	fmt.Println(l.Addr())
	front, err := s.front()
	if err != nil {
		return err
	}
	return http.Serve(&bad.Listener{Listener: l, Root: s.root}, front)
}

// front joins both kinds on one socket: the library knows a server for each.
func (s *state) front() (http.Handler, error) {
	mux := http.NewServeMux()
	mux.HandleFunc("/Plugin.Activate", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, `{"Implements": ["NetworkDriver", "IpamDriver"]}`)
	})
	mux.HandleFunc("/IpamDriver.GetCapabilities", func(w http.ResponseWriter, _ *http.Request) { // the library does not know the second one
		fmt.Fprintf(w, `{"RequiresMACAddress": %v, "RequiresRequestReplay": %v}`, s.mac, s.replay)
	})
	if s.nogw { // nor these
		mux.HandleFunc("/NetworkDriver.GetCapabilities", func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprintf(w, `{"Scope": %q, "ConnectivityScope": "local", "GwAllocChecker": true}`, s.scope)
		})
		mux.HandleFunc("/NetworkDriver.GwAllocCheck", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"SkipIPv4": true, "SkipIPv6": false}`) })
	}
	behind := map[string]sdk.Handler{"NetworkDriver": network.NewHandler(&driver{s}).Handler, "IpamDriver": ipam.NewHandler(&manager{s}).Handler}
	proxies := map[string]http.Handler{}
	for kind, h := range behind {
		path := filepath.Join(s.root, kind+".sock")
		if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
			return nil, err
		}
		l, err := net.Listen("unix", path)
		if err != nil {
			return nil, err
		}
		go h.Serve(l)
		to := &url.URL{Scheme: "http", Host: "plugin"}
		proxy := httputil.NewSingleHostReverseProxy(to)
		proxy.Transport = &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		}}
		proxies[kind] = proxy
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		kind, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), ".")
		if proxies[kind] == nil {
			http.NotFound(w, r)
			return
		}
		proxies[kind].ServeHTTP(w, r)
	})
	return s.noted(mux), nil
}

// noted keeps each call.
func (s *state) noted(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		r.Body = io.NopCloser(bytes.NewReader(body))
		f, err := os.OpenFile(filepath.Join(s.root, "calls"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err == nil {
			fmt.Fprintf(f, "%s %s\n", strings.TrimPrefix(r.URL.Path, "/"), bytes.TrimSpace(body))
			err = f.Close()
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// state is what the plugin keeps.
type state struct {
	root   string
	scope  string
	mac    bool
	replay bool
	nogw   bool

	mu        sync.Mutex
	Networks  map[string]*netState
	Endpoints map[string]*endState
	Pools     map[string]*poolState
}

type netState struct {
	Bridge   string
	Gateways []netip.Prefix
	Options  map[string]any
}

type endState struct {
	Network    string
	Host, Peer string
	Gateway    string
	Joined     bool
	Open       bool
}

type poolState struct {
	Subnet string
	Used   map[string]bool
}

func (s *state) load() error {
	raw, err := os.ReadFile(filepath.Join(s.root, "state.json"))
	if err == nil {
		err = json.Unmarshal(raw, s)
	} else if os.IsNotExist(err) {
		err = nil
	}
	if s.Networks == nil {
		s.Networks, s.Endpoints = map[string]*netState{}, map[string]*endState{}
	}
	if s.Pools == nil || s.replay {
		s.Pools = map[string]*poolState{}
	}
	return err
}

// save is called with mu held.
func (s *state) save() error {
	raw, err := json.Marshal(s)
	if err != nil {
		return err
	}
	path := filepath.Join(s.root, "state.json")
	if err := os.WriteFile(path+".new", raw, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}
