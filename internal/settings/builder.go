package settings

import (
	"encoding/json"
	"strconv"
	"strings"
	"time"

	"corten.dev/corten/internal/errs"
)

// Builder is what builds may take and do; dockerd's key "builder".
type Builder struct {
	GC           BuilderGC           `json:"gc,omitzero"`
	Entitlements BuilderEntitlements `json:"entitlements,omitzero"`
	// Parallelism is how many steps run side by side, of all builds; 0: two for each processor, at least 8.
	Parallelism int `json:"parallelism,omitempty"`
}

// BuilderGC says when the cache of builds is collected.
type BuilderGC struct {
	Enabled *bool    `json:"enabled,omitempty"` // nil: yes
	Policy  []GCRule `json:"policy,omitempty"`
	// The bounds of the rules when there is no policy. DefaultKeepStorage is the old name of the first.
	DefaultKeepStorage   Space `json:"defaultKeepStorage,omitzero"`
	DefaultReservedSpace Space `json:"defaultReservedSpace,omitzero"`
	DefaultMaxUsedSpace  Space `json:"defaultMaxUsedSpace,omitzero"`
	DefaultMinFreeSpace  Space `json:"defaultMinFreeSpace,omitzero"`
}

// GCRule is one rule: what it chooses goes, the longest unused first, until its bounds hold.
type GCRule struct {
	All          bool     `json:"all,omitempty"`
	Filter       GCFilter `json:"filter,omitempty"`
	KeepStorage  Space    `json:"keepStorage,omitzero"` // the old name of ReservedSpace
	Reserved     Space    `json:"reservedSpace,omitzero"`
	MaxUsed      Space    `json:"maxUsedSpace,omitzero"`
	MinFree      Space    `json:"minFreeSpace,omitzero"`
	KeepDuration Duration `json:"keepDuration,omitzero"`
}

// BuilderEntitlements are what builds may be granted; nil is the default: the host's network and devices yes, insecure steps no.
type BuilderEntitlements struct {
	NetworkHost      *bool `json:"network-host,omitempty"`
	SecurityInsecure *bool `json:"security-insecure,omitempty"`
	Device           *bool `json:"device,omitempty"`
}

// Granted lists the entitlements by BuildKit's names.
func (e BuilderEntitlements) Granted() (names []string) {
	for _, one := range []struct {
		name string
		set  *bool
		def  bool
	}{{"network.host", e.NetworkHost, true}, {"security.insecure", e.SecurityInsecure, false}, {"device", e.Device, true}} {
		if one.set == nil && one.def || one.set != nil && *one.set {
			names = append(names, one.name)
		}
	}
	return names
}

// GCFilter chooses records: ["unused-for=48h", "type==exec.cachemount"], or the same as {"unused-for": {"48h": true}}.
type GCFilter map[string][]string

// UnmarshalJSON reads both forms.
func (f *GCFilter) UnmarshalJSON(raw []byte) error {
	*f = GCFilter{}
	var list []string
	if err := json.Unmarshal(raw, &list); err == nil {
		for _, one := range list {
			key, value, ok := strings.Cut(one, "=")
			if !ok || key == "" {
				return errs.New(errs.Invalid, "filter %q: give key=value", one)
			}
			(*f)[key] = append((*f)[key], strings.TrimPrefix(value, "="))
		}
		return nil
	}
	var sets map[string]map[string]bool
	if err := json.Unmarshal(raw, &sets); err != nil {
		return errs.New(errs.Invalid, "filter %s: give a list of \"key=value\"", raw)
	}
	for key, values := range sets {
		for value, on := range values {
			if on {
				(*f)[key] = append((*f)[key], value)
			}
		}
	}
	return nil
}

// Space is bytes of a file system, or a percentage of it.
type Space struct {
	Bytes   int64
	Percent int
}

// UnmarshalJSON reads a number, "20GB" or "10%".
func (s *Space) UnmarshalJSON(raw []byte) error {
	var text string
	if err := json.Unmarshal(raw, &text); err == nil {
		if n, ok := strings.CutSuffix(text, "%"); ok {
			p, err := strconv.Atoi(strings.TrimSpace(n))
			if err != nil || p < 0 || p > 100 {
				return errs.New(errs.Invalid, "%q: give a percentage from 0%% to 100%%", text)
			}
			*s = Space{Percent: p}
			return nil
		}
	}
	var b Bytes
	if err := b.UnmarshalJSON(raw); err != nil {
		return errs.New(errs.Invalid, "%s: give a size like \"20GB\", or a percentage of the disk", raw)
	}
	*s = Space{Bytes: int64(b)}
	return nil
}

// MarshalJSON writes what UnmarshalJSON reads.
func (s Space) MarshalJSON() ([]byte, error) {
	if s.Percent > 0 {
		return json.Marshal(strconv.Itoa(s.Percent) + "%")
	}
	return json.Marshal(s.Bytes)
}

// Of is the space in bytes on a file system of this size.
func (s Space) Of(disk int64) int64 {
	if s.Percent > 0 {
		return disk / 100 * int64(s.Percent)
	}
	return s.Bytes
}

// Rules are the policy, with the old names resolved; none: the default rules hold, within the default bounds.
func (g BuilderGC) Rules() []GCRule {
	rules := make([]GCRule, len(g.Policy))
	for i, r := range g.Policy {
		r.Reserved = firstOf(r.Reserved, r.KeepStorage)
		rules[i] = r
	}
	return rules
}

// Bounds are those that the operator gave the default rules; zero where he did not.
func (g BuilderGC) Bounds() (reserved, maxUsed, minFree Space) {
	return firstOf(g.DefaultReservedSpace, g.DefaultKeepStorage), g.DefaultMaxUsedSpace, g.DefaultMinFreeSpace
}

func firstOf(all ...Space) Space {
	for _, s := range all {
		if s != (Space{}) {
			return s
		}
	}
	return Space{}
}

func (s *Settings) checkBuilder() error {
	if s.Builder.Parallelism < 0 {
		return errs.New(errs.Invalid, "builder: parallelism %d: give a number of steps", s.Builder.Parallelism)
	}
	for i, r := range s.Builder.GC.Policy {
		if r.KeepDuration < 0 {
			return errs.New(errs.Invalid, "builder: rule %d of the policy: a time span cannot be negative", i+1)
		}
		for key, values := range r.Filter {
			switch key {
			case "unused-for", "until":
				for _, v := range values {
					if _, err := time.ParseDuration(v); err != nil {
						return errs.New(errs.Invalid, "builder: rule %d of the policy: filter %s=%s: give a time span like 48h", i+1, key, v)
					}
				}
			case "id", "parent", "type", "description", "inuse", "mutable", "immutable", "shared", "private":
			default:
				return errs.New(errs.Invalid, "builder: rule %d of the policy: filter %q is not known", i+1, key)
			}
		}
	}
	return nil
}

// builderText explains the cache of builds on the page of the settings.
const builderText = `
## Builds

In the file only, as dockerd has it: ` + "`\"builder\": {\"gc\": {…}, \"entitlements\": {…}, \"parallelism\": 0}`" + `.

What builds leave for later ones is collected by rules, after builds and every hour. A rule chooses records (` + "`filter`" + `, ` + "`all`" + `: also those that belong to images and
to the engine) that were not used for ` + "`keepDuration`" + `, and takes the longest unused first, until no more than ` + "`maxUsedSpace`" + ` is in use and ` + "`minFreeSpace`" + ` is free;
` + "`reservedSpace`" + ` always stays. A space is a size (` + "`\"20GB\"`" + `) or a percentage of the disk (` + "`\"10%\"`" + `). Without a ` + "`policy`" + ` there are four rules: cache mounts, contexts
and checkouts beyond 512 MB that were not used for two days; what was not used for 60 days; what no image has; and all. The last three hold the bounds
` + "`defaultReservedSpace`" + ` (10% of the disk, at most 10 GB), ` + "`defaultMaxUsedSpace`" + ` (60%, at most 100 GB) and ` + "`defaultMinFreeSpace`" + ` (20%, at most 20 GB). ` + "`\"enabled\": false`" + ` turns it off. Entitlements say what a build
may ask for: ` + "`network-host`" + ` and ` + "`device`" + ` (both true), ` + "`security-insecure`" + ` (false). ` + "`parallelism`" + ` is how many steps run side by side, of all builds; 0 is one for each
processor.
`
