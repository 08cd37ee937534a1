package container

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/network"
)

// Settings are the part of a record that can be changed after create: everything that was asked for, and what it became.
type Settings struct {
	Image              digest.Digest
	ImageRef, Platform string
	Config             Config
	Host               Host
	Networks           map[string]EndpointSettings
	Path               string
	Args               []string
	Mounts             []Mount
	Tree               string `json:",omitempty"` // see [Record.TreeKey]
}

// Settings gives the record's settings. Maps and slices are shared with it: they are replaced, never edited.
func (r *Record) Settings() Settings {
	return Settings{
		Image: r.Image, ImageRef: r.ImageRef, Platform: r.Platform, Config: r.Config, Host: r.Host, Networks: r.Networks, Path: r.Path, Args: r.Args, Mounts: r.Mounts, Tree: r.Tree,
	}
}

// Set puts settings into the record.
func (r *Record) Set(s Settings) {
	r.Image, r.ImageRef, r.Platform, r.Config, r.Host, r.Networks = s.Image, s.ImageRef, s.Platform, s.Config, s.Host, s.Networks
	r.Path, r.Args, r.Mounts, r.Tree = s.Path, s.Args, s.Mounts, s.Tree
}

// TreeKey names the container's file tree: its id, or what an upgrade to another image made instead.
func (r *Record) TreeKey() string {
	if r.Tree != "" {
		return r.Tree
	}
	return r.ID
}

// TreeKeys names all trees that the record stands for: its own, the one to go back to, and the one to come.
func (r *Record) TreeKeys() []string {
	keys := []string{r.TreeKey()}
	for _, other := range []*Settings{r.Previous, r.Next} {
		if other == nil {
			continue
		}
		rec := Record{ID: r.ID, Tree: other.Tree}
		if key := rec.TreeKey(); !slices.Contains(keys, key) {
			keys = append(keys, key)
		}
	}
	return keys
}

// Change is one thing in which settings differ.
type Change struct {
	What string // such as "publish 8080:80/tcp"; names, never values: an environment has secrets
	Live bool   // it can be made while the container runs; the rest needs its process to be started again
}

// Diff lists in what want differs from have. A log configuration may ask for more than can be changed live, which only log drivers know.
func Diff(have, want Settings) []Change {
	var all []Change
	add := func(live bool, format string, args ...any) {
		all = append(all, Change{What: fmt.Sprintf(format, args...), Live: live})
	}
	if have.Image != want.Image || have.Tree != want.Tree {
		add(false, "image %s", want.ImageRef)
	}
	each(list(have.Host.Ports), list(want.Host.Ports), func(p string) { add(true, "publish %s", p) }, func(p string) { add(true, "unpublish %s", p) })
	diffMap(have.Networks, want.Networks, func(verb, name string) { add(true, "%s network %s", verb, name) })
	diffMap(have.Config.Labels, want.Config.Labels, func(verb, name string) { add(true, "%s label %s", verb, name) })
	diffMap(have.Host.Annotations, want.Host.Annotations, func(verb, name string) {
		live := name == AnnotationEgress || name == AnnotationRateEgress || name == AnnotationRateIngress
		add(live || strings.HasPrefix(name, AnnotationRestart), "%s annotation %s", verb, name)
	})
	diffMap(environment(have.Config.Env), environment(want.Config.Env), func(verb, name string) { add(false, "%s variable %s", verb, name) })
	diffMap(byTarget(have.Mounts), byTarget(want.Mounts), func(verb, name string) { add(false, "%s mount %s", verb, name) })
	if have.Host.Log.Type != want.Host.Log.Type || have.Host.Log.Own != want.Host.Log.Own {
		add(true, "log driver %s", want.Host.Log.Type)
	}
	diffMap(have.Host.Log.Config, want.Host.Log.Config, func(verb, name string) { add(true, "%s log option %s", verb, name) })
	if have.Host.Restart != want.Host.Restart {
		add(true, "restart policy %s", want.Host.Restart.Name)
	}
	if !reflect.DeepEqual(have.Host.Resources, want.Host.Resources) {
		add(limitsLive(have.Host.Resources, want.Host.Resources), "limits")
	}
	if !reflect.DeepEqual(rest(have), rest(want)) {
		add(false, "other settings")
	}
	return all
}

// rest is settings without what Diff has compared by name.
func rest(s Settings) Settings {
	s.Image, s.ImageRef, s.Platform, s.Tree = "", "", "", ""
	s.Networks, s.Mounts, s.Path, s.Args = nil, nil, "", nil
	s.Config.Labels, s.Config.Env, s.Config.Image = nil, nil, ""
	s.Host.Ports, s.Host.Annotations, s.Host.Restart, s.Host.Resources = nil, nil, RestartPolicy{}, Resources{}
	s.Host.Log = LogConfig{}
	s.Host.Binds, s.Host.Mounts, s.Host.Tmpfs, s.Config.Volumes = nil, nil, nil, nil // Mounts is what they became
	if len(s.Config.ExposedPorts) == 0 {
		s.Config.ExposedPorts = nil
	}
	return s
}

// limitsLive tells whether a running container's cgroups can take the change: a limit can be set there, but not be taken away, and devices are not limits.
func limitsLive(have, want Resources) bool {
	h, w := reflect.ValueOf(have), reflect.ValueOf(want)
	for i := range h.NumField() {
		if reflect.DeepEqual(h.Field(i).Interface(), w.Field(i).Interface()) {
			continue
		}
		switch h.Type().Field(i).Name {
		case "Devices", "DeviceCgroupRules", "DeviceRequests", "Ulimits", "CgroupParent":
			return false
		}
		if w.Field(i).IsZero() {
			return false
		}
	}
	return true
}

func list(ports []network.Port) []string {
	out := make([]string, len(ports))
	for i, p := range ports {
		out[i] = PortText(p)
	}
	return out
}

// PortText writes a published port as people do: [address:][port:]port/protocol.
func PortText(p network.Port) string {
	text := fmt.Sprintf("%d/%s", p.ContainerPort, p.Proto)
	if n := p.Len(); n > 1 {
		text = fmt.Sprintf("%d-%d/%s", p.ContainerPort, int(p.ContainerPort)+n-1, p.Proto)
	}
	switch {
	case p.HostPort != 0 && p.Len() > 1:
		text = fmt.Sprintf("%d-%d:%s", p.HostPort, int(p.HostPort)+p.Len()-1, text)
	case p.HostPort != 0 && p.HostPortEnd > p.HostPort:
		text = fmt.Sprintf("%d-%d:%s", p.HostPort, p.HostPortEnd, text)
	case p.HostPort != 0:
		text = fmt.Sprintf("%d:%s", p.HostPort, text)
	}
	switch {
	case !p.HostIP.IsValid():
	case p.HostIP.Is6():
		text = "[" + p.HostIP.String() + "]:" + text
	default:
		text = p.HostIP.String() + ":" + text
	}
	return text
}

func each(have, want []string, added, gone func(string)) {
	for _, w := range want {
		if !slices.Contains(have, w) {
			added(w)
		}
	}
	for _, h := range have {
		if !slices.Contains(want, h) {
			gone(h)
		}
	}
}

// diffMap calls fn with "add", "change" or "remove" and the key, in the order of keys.
func diffMap[V any](have, want map[string]V, fn func(verb, name string)) {
	keys := slices.Sorted(maps.Keys(have))
	for key := range want {
		if _, both := have[key]; !both {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	for _, key := range keys {
		h, had := have[key]
		w, has := want[key]
		switch {
		case !had:
			fn("add", key)
		case !has:
			fn("remove", key)
		case !reflect.DeepEqual(h, w):
			fn("change", key)
		}
	}
}

func environment(env []string) map[string]string {
	all := make(map[string]string, len(env))
	for _, kv := range env {
		name, value, _ := strings.Cut(kv, "=")
		all[name] = value
	}
	return all
}

func byTarget(mounts []Mount) map[string]Mount {
	all := make(map[string]Mount, len(mounts))
	for _, mnt := range mounts {
		all[mnt.Target] = mnt
	}
	return all
}
