package cli

import (
	"crypto/rand"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"maps"
	"math/big"
	"os"
	"slices"
	"strconv"
	"strings"

	"corten.dev/corten/internal/buildwire"
	"corten.dev/corten/internal/cli/parse"
	"corten.dev/corten/internal/reference"
)

// buildPlan is one build that is ready to be asked for, with what the engine may ask of us meanwhile.
type buildPlan struct {
	req     *buildwire.Request
	prefix  string            // of step names, when several builds run at once
	dirs    map[string]string // by the names of contexts
	secrets map[string]secretSource
	agents  map[string]agentSource
	sinks   map[string]*buildSink // by the exporters' ids
	stores  map[string]string     // folders of OCI layouts, by the names that the engine uses
	temps   []string              // folders of ours
	call    string                // the subrequest, empty for a build
	format  string
}

func newBuildPlan() *buildPlan {
	return &buildPlan{req: &buildwire.Request{Ref: newRef(), Frontend: "dockerfile.v0"}, dirs: map[string]string{}, secrets: map[string]secretSource{},
		agents: map[string]agentSource{}, sinks: map[string]*buildSink{}, stores: map[string]string{}}
}

// newRef names a build: 25 letters and digits, as buildx's.
func newRef() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	text := new(big.Int).SetBytes(b[:]).Text(36)
	return strings.Repeat("0", 25-len(text)) + text
}

// close removes what was made for the build.
func (p *buildPlan) close() error {
	var first error
	for _, dir := range p.temps {
		if err := os.RemoveAll(dir); err != nil && first == nil {
			first = err
		}
	}
	return first
}

// plan translates flags and the context's argument.
func (o *buildFlags) plan(a *app, context string) (p *buildPlan, err error) {
	p = newBuildPlan()
	defer func() {
		if err != nil {
			_ = p.close() // the error says more
		}
	}()
	if _, err = a.engine(); err != nil { // which it is decides which proxies steps get
		return p, err
	}
	if p.req.Attrs, err = o.attrs(proxyEnv(o.args[:len(o.args):len(o.args)], a.cfg, a.ep.Host)); err != nil {
		return p, err
	}
	if p.call, p.format, err = o.callOf(); err != nil {
		return p, err
	}
	if p.call != "" {
		p.req.Attrs["requestid"] = p.call
		p.req.Attrs["frontend.caps"] = "moby.buildkit.frontend.subrequests+forward"
	}
	steps := []func() error{
		func() error { return o.planExports(a, p) },
		func() error { return o.planCaches(a, p) },
		func() error { return o.planSecrets(p) },
		func() error { return p.planAgents(o.ssh) },
		func() error { return o.planAllowed(p) },
		func() error { return o.planContext(a, p, context) },
	}
	for _, step := range steps {
		if err = step(); err != nil {
			return p, err
		}
	}
	p.describeSource()
	p.req.Contexts = slices.Sorted(maps.Keys(p.dirs))
	p.req.Secrets = slices.Sorted(maps.Keys(p.secrets))
	p.req.SSH = slices.Sorted(maps.Keys(p.agents))
	p.req.Shell = o.onError == "shell"
	return p, nil
}

// planAllowed adds entitlements, and a source policy that the environment names.
func (o *buildFlags) planAllowed(p *buildPlan) error {
	for _, e := range o.allow {
		switch {
		case e == "network.host", e == "security.insecure", e == "device", strings.HasPrefix(e, "device="):
			p.req.Entitlements = append(p.req.Entitlements, e)
		default:
			return invalid("ERROR: unknown entitlement %q: use network.host, security.insecure or device", e)
		}
	}
	if o.network == "host" && !slices.Contains(p.req.Entitlements, "network.host") {
		p.req.Entitlements = append(p.req.Entitlements, "network.host")
	}
	file := os.Getenv("EXPERIMENTAL_BUILDKIT_SOURCE_POLICY")
	if file == "" {
		return nil
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("source policy: %w", err)
	}
	if !json.Valid(data) {
		return invalid("source policy %s is not JSON", file)
	}
	p.req.Policy = data
	return nil
}

// planHosts turns --add-host into the frontend's attribute; gateway is asked only when somebody wants it.
func planHosts(hosts []string, gateway func() (string, error)) (string, error) {
	var out []string
	for _, h := range hosts {
		line, err := parse.AddHost(h)
		if err != nil {
			return "", err
		}
		name, ip, _ := strings.Cut(line, ":")
		if ip == "host-gateway" {
			if ip, err = gateway(); err != nil {
				return "", err
			}
		}
		out = append(out, name+"="+ip)
	}
	return strings.Join(out, ","), nil
}

// names are -t, as registries know them.
func (o *buildFlags) names() ([]string, error) {
	var names []string
	for _, t := range o.tags {
		ref, err := reference.Parse(t)
		if err != nil {
			return nil, invalid("ERROR: invalid tag %q: %w", t, err)
		}
		names = append(names, ref.WithDefaultTag().String())
	}
	return names, nil
}

// annotationAttrs translates [type[,type]:]key=value into the exporters' attributes.
func annotationAttrs(text string) (map[string]string, error) {
	key, value, ok := strings.Cut(text, "=")
	if !ok || key == "" {
		return nil, invalid("ERROR: invalid annotation %q: use [type:]name=value", text)
	}
	kinds := []string{"manifest"}
	if list, rest, ok := strings.Cut(key, ":"); ok {
		kinds, key = splitOutside(list), rest
	}
	out := map[string]string{}
	for _, kind := range kinds {
		name, platform := kind, ""
		if i := strings.IndexByte(kind, '['); i >= 0 && strings.HasSuffix(kind, "]") {
			name, platform = kind[:i], kind[i:]
		}
		switch name {
		case "manifest":
			out["annotation"+platform+"."+key] = value
		case "index", "manifest-descriptor", "index-descriptor":
			out["annotation-"+name+platform+"."+key] = value
		default:
			return nil, invalid("ERROR: invalid annotation %q: unknown type %s; use manifest, index, manifest-descriptor or index-descriptor", text, name)
		}
	}
	return out, nil
}

// splitOutside splits at commas that are in no brackets.
func splitOutside(s string) (list []string) {
	depth, start := 0, 0
	for i, r := range s {
		switch {
		case r == '[':
			depth++
		case r == ']':
			depth--
		case r == ',' && depth == 0:
			list = append(list, s[start:i])
			start = i + 1
		}
	}
	return append(list, s[start:])
}

// csvFields splits one line of comma separated values, with quotes.
func csvFields(s string) ([]string, error) {
	if s == "" {
		return nil, nil
	}
	if !strings.Contains(s, `"`) {
		return strings.Split(s, ","), nil
	}
	return csv.NewReader(strings.NewReader(s)).Read()
}

// csvMap reads key=value pairs.
func csvMap(s string) (map[string]string, error) {
	fields, err := csvFields(s)
	if err != nil {
		return nil, err
	}
	m := map[string]string{}
	for _, f := range fields {
		key, value, ok := strings.Cut(f, "=")
		if !ok {
			return nil, invalid("invalid value %s", f)
		}
		m[strings.ToLower(strings.TrimSpace(key))] = value
	}
	return m, nil
}

func decimal(n int64) string { return strconv.FormatInt(n, 10) }

func boolOf(s string) (on, ok bool) {
	on, err := strconv.ParseBool(s)
	return on, err == nil
}
