package cli

import (
	"maps"
	"slices"
	"strings"

	"corten.dev/corten/internal/buildwire"
)

// planInline is plan with a Dockerfile that stands in the bake file.
func (o *buildFlags) planInline(a *app, dir, dockerfile string) (*buildPlan, error) {
	if dockerfile == "" {
		return o.plan(a, dir)
	}
	o.file = "-"
	b := *a // the same run, with another standard input
	b.In = strings.NewReader(dockerfile)
	return o.plan(&b, dir)
}

// link makes another target's result a context of p: the engine builds it first, within the same request. What the client has for it joins what it has for p, under names of its own.
func (o *bakeFlags) link(a *app, plan *bakePlan, p *buildPlan, key, other string, above []string) error {
	l, _, err := o.target(a, plan, other, above)
	if err != nil {
		return err
	}
	p.temps = append(p.temps, l.temps...)
	p.req.Attrs["frontend.caps"] = joinCaps(p.req.Attrs["frontend.caps"], "moby.buildkit.frontend.contexts+forward")
	l.req.Exports, l.req.CacheTo = nil, nil
	if p.req.Links == nil {
		p.req.Links = map[string]*buildwire.Request{}
	}
	renamed := map[string]string{}
	for _, name := range l.req.Contexts {
		mine := other + "/" + name
		p.dirs[mine] = l.dirs[name]
		renamed[name] = mine
	}
	l.rename(renamed)
	maps.Copy(p.secrets, l.secrets)
	maps.Copy(p.agents, l.agents)
	maps.Copy(p.stores, l.stores)
	p.req.Links[key] = l.req
	p.req.Contexts = slices.Sorted(maps.Keys(p.dirs))
	p.req.Secrets = slices.Sorted(maps.Keys(p.secrets))
	p.req.SSH = slices.Sorted(maps.Keys(p.agents))
	return nil
}

// rename makes the frontend ask for directories by other names.
func (p *buildPlan) rename(names map[string]string) {
	at := p.req.Attrs
	for attr, name := range map[string]string{"contextkey": "context", "dockerfilekey": "dockerfile"} {
		if have := at[attr]; have != "" {
			name = have
		}
		if mine := names[name]; mine != "" {
			at[attr] = mine
		} else if attr == "dockerfilekey" && names["context"] != "" {
			at[attr] = names["context"]
		}
	}
	for key, value := range at {
		if local, ok := strings.CutPrefix(value, "local:"); ok && strings.HasPrefix(key, "context:") && names[local] != "" {
			at[key] = "local:" + names[local]
		}
	}
	p.req.Contexts = nil
}
