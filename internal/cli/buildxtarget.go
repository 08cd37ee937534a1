package cli

import (
	"encoding/json"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
)

// bakeTarget is one target of a plan. Entries like type=registry,ref=x come as texts or as objects.
type bakeTarget struct {
	Description   string             `json:"description"`
	Context       string             `json:"context"`
	Contexts      map[string]string  `json:"contexts"`
	Dockerfile    string             `json:"dockerfile"`
	Inline        string             `json:"dockerfile-inline"`
	Args          map[string]*string `json:"args"`
	Labels        map[string]*string `json:"labels"`
	Annotations   []string           `json:"annotations"`
	Attest        []bakeEntry        `json:"attest"`
	Tags          []string           `json:"tags"`
	CacheFrom     []bakeEntry        `json:"cache-from"`
	CacheTo       []bakeEntry        `json:"cache-to"`
	Target        string             `json:"target"`
	Secret        []bakeEntry        `json:"secret"`
	SSH           []bakeEntry        `json:"ssh"`
	Platforms     []string           `json:"platforms"`
	Output        []bakeEntry        `json:"output"`
	Pull          bool               `json:"pull"`
	NoCache       bool               `json:"no-cache"`
	NoCacheFilter []string           `json:"no-cache-filter"`
	Network       string             `json:"network"`
	ShmSize       json.RawMessage    `json:"shm-size"`
	Ulimits       []string           `json:"ulimits"`
	Call          string             `json:"call"`
	Entitlements  []string           `json:"entitlements"`
	ExtraHosts    map[string]string  `json:"extra-hosts"`
}

// bakeEntry is such an entry as a text.
type bakeEntry string

// UnmarshalJSON takes a text or an object.
func (e *bakeEntry) UnmarshalJSON(data []byte) error {
	var text string
	if json.Unmarshal(data, &text) == nil {
		*e = bakeEntry(text)
		return nil
	}
	var obj map[string]any
	if err := json.Unmarshal(data, &obj); err != nil {
		return err
	}
	if paths, ok := obj["paths"].([]any); ok || obj["id"] != nil && len(obj) == 1 { // of ssh
		var all []string
		for _, p := range paths {
			all = append(all, fmt.Sprint(p))
		}
		*e = bakeEntry(fmt.Sprint(obj["id"]))
		if len(all) > 0 {
			*e += bakeEntry("=" + strings.Join(all, ","))
		}
		return nil
	}
	var fields []string
	for _, key := range slices.Sorted(maps.Keys(obj)) {
		field := fmt.Sprintf("%s=%v", key, obj[key])
		if strings.ContainsAny(field, ",\"") {
			field = `"` + strings.ReplaceAll(field, `"`, `""`) + `"`
		}
		fields = append(fields, field)
	}
	*e = bakeEntry(strings.Join(fields, ","))
	return nil
}

func entries(list []bakeEntry) (out []string) {
	for _, e := range list {
		out = append(out, string(e))
	}
	return out
}

// flags are the target as the flags of build: both are planned by the same code.
func (t *bakeTarget) flags(o *bakeFlags) *buildFlags {
	f := &buildFlags{tags: t.Tags, platforms: t.Platforms, target: t.Target, outputs: entries(t.Output), cacheFrom: entries(t.CacheFrom), cacheTo: entries(t.CacheTo),
		secrets: entries(t.Secret), ssh: entries(t.SSH), attests: entries(t.Attest), annotations: t.Annotations, pull: t.Pull, noCache: t.NoCache, noCacheFilter: t.NoCacheFilter,
		network: t.Network, ulimits: t.Ulimits, call: "build", trust: true, check: o.check}
	if len(f.noCacheFilter) > 0 {
		f.noCache = false // buildx lets the narrower word count
	}
	for _, pair := range []struct {
		from map[string]*string
		to   *[]string
	}{{t.Args, &f.args}, {t.Labels, &f.labels}} {
		for _, name := range slices.Sorted(maps.Keys(pair.from)) {
			if v := pair.from[name]; v != nil {
				*pair.to = append(*pair.to, name+"="+*v)
			}
		}
	}
	for _, host := range slices.Sorted(maps.Keys(t.ExtraHosts)) {
		f.hosts = append(f.hosts, host+"="+t.ExtraHosts[host])
	}
	if t.Call != "" {
		f.call = t.Call
	}
	if o.call != "" && o.call != "build" {
		f.call = o.call
	}
	if len(t.ShmSize) > 0 {
		f.shmSize = strings.Trim(string(t.ShmSize), `"`)
	}
	return f
}

// target plans one target; above are those that use it as a context.
func (o *bakeFlags) target(a *app, plan *bakePlan, name string, above []string) (*buildPlan, *buildFlags, error) {
	t := plan.Target[name]
	if t == nil {
		return nil, nil, &exitError{code: 1, text: "ERROR: failed to find target " + name}
	}
	if slices.Contains(above, name) {
		return nil, nil, invalid("ERROR: infinite loop from %s to %s", above[len(above)-1], name)
	}
	f := t.flags(o)
	for _, e := range t.Entitlements {
		if !slices.Contains(o.allow, e) {
			return nil, nil, &exitError{code: 1, text: fmt.Sprintf("ERROR: additional privileges requested: pass \"--allow %s\" to grant requested privileges", e)}
		}
		f.allow = append(f.allow, e)
	}
	if f.network == "host" && !slices.Contains(o.allow, "network.host") {
		return nil, nil, &exitError{code: 1, text: "ERROR: additional privileges requested: pass \"--allow network.host\" to grant requested privileges"}
	}
	linked := map[string]string{}
	for key, value := range t.Contexts {
		if other, ok := strings.CutPrefix(value, "target:"); ok {
			name, err := contextName(key)
			if err != nil {
				return nil, nil, invalid("ERROR: invalid context name %s: %w", key, err)
			}
			linked[name] = other
			continue
		}
		value, err := o.place(value)
		if err != nil {
			return nil, nil, err
		}
		f.contexts = append(f.contexts, key+"="+value)
	}
	slices.Sort(f.contexts)
	dir := t.Context
	if dir == "" {
		dir = "."
	}
	dir, err := o.place(dir)
	if err != nil {
		return nil, nil, err
	}
	if err := t.dockerfile(f, dir); err != nil {
		return nil, nil, err
	}
	if err := f.settle(); err != nil {
		return nil, nil, err
	}
	p, err := f.planInline(a, dir, t.Inline)
	if err != nil {
		return nil, nil, err
	}
	for key, other := range linked {
		if err := o.link(a, plan, p, key, other, append(above, name)); err != nil {
			return p, f, err
		}
	}
	return p, f, nil
}

// dockerfile finds the file: relative to the context, as in compose files, unless the context is elsewhere.
func (t *bakeTarget) dockerfile(f *buildFlags, dir string) error {
	if at, ok := local(t.Dockerfile); ok {
		at, err := filepath.Abs(at) // of this host, wherever the context is
		f.file = at
		return err
	}
	switch {
	case t.Inline != "":
	case t.Dockerfile == "" || isRemoteContext(dir) || isHTTP(t.Dockerfile) || filepath.IsAbs(t.Dockerfile) || dir == "-":
		f.file = t.Dockerfile
	default:
		f.file = filepath.Join(dir, t.Dockerfile)
	}
	return nil
}
