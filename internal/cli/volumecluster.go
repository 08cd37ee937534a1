package cli

import (
	"context"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/volume"
	"github.com/spf13/pflag"

	"corten.dev/corten/internal/cli/engineapi"
	"corten.dev/corten/internal/cli/parse"
)

// clusterFlags describe volumes of a cluster. An engine that is in none refuses them in docker's words.
type clusterFlags struct {
	availability, group, scope, sharing, kind string
	limit, required                           string
	secrets, preferred, requisite             []string
}

func (o *clusterFlags) register(f *pflag.FlagSet) {
	f.StringVar(&o.availability, "availability", "active", `cluster volume: "active", "pause" or "drain"`)
	f.StringVar(&o.group, "group", "", "cluster volume: its group")
	f.StringVar(&o.limit, "limit-bytes", "", "cluster volume: most bytes")
	f.StringVar(&o.required, "required-bytes", "", "cluster volume: least bytes")
	f.StringVar(&o.scope, "scope", "single", `cluster volume: nodes at a time, "single" or "multi"`)
	list(f, &o.secrets, "secret", "", "cluster volume: secret, key=name")
	f.StringVar(&o.sharing, "sharing", "none", `cluster volume: "none", "readonly", "onewriter" or "all"`)
	list(f, &o.preferred, "topology-preferred", "", "cluster volume: topology where it would best be, k=v,…")
	list(f, &o.requisite, "topology-required", "", "cluster volume: topology where it must be, k=v,…")
	f.StringVar(&o.kind, "type", "block", `cluster volume: "mount" or "block"`)
}

// spec is what the flags say; nil when none was given.
func (o *clusterFlags) spec(v *verb) (*volume.ClusterVolumeSpec, error) {
	names := []string{"availability", "group", "limit-bytes", "required-bytes", "scope", "secret", "sharing", "topology-preferred", "topology-required", "type"}
	if !slices.ContainsFunc(names, v.changed) {
		return nil, nil
	}
	least, err := size("required-bytes", o.required)
	if err != nil {
		return nil, err
	}
	most, err := size("limit-bytes", o.limit)
	if err != nil {
		return nil, err
	}
	spec := &volume.ClusterVolumeSpec{
		Group: o.group, AccessMode: &volume.AccessMode{Scope: volume.Scope(o.scope), Sharing: volume.SharingMode(o.sharing)}, Availability: volume.Availability(o.availability),
		CapacityRange:             &volume.CapacityRange{RequiredBytes: least, LimitBytes: most},
		AccessibilityRequirements: &volume.TopologyRequirement{Requisite: topologies(o.requisite), Preferred: topologies(o.preferred)},
	}
	switch o.kind {
	case "mount":
		spec.AccessMode.MountVolume = &volume.TypeMount{}
	case "block":
		spec.AccessMode.BlockVolume = &volume.TypeBlock{}
	default:
		return nil, invalid(`invalid type %q: want "mount" or "block"`, o.kind)
	}
	for key, name := range parse.Map(o.secrets) {
		spec.Secrets = append(spec.Secrets, volume.Secret{Key: key, Secret: name})
	}
	slices.SortFunc(spec.Secrets, func(a, b volume.Secret) int { return strings.Compare(a.Key, b.Key) })
	return spec, nil
}

func topologies(list []string) (out []volume.Topology) {
	for _, text := range list {
		out = append(out, volume.Topology{Segments: parse.Map(strings.Split(text, ","))})
	}
	return out
}

func newVolumeUpdate() *verb {
	var availability string
	v := &verb{
		use: "[OPTIONS] VOLUME", min: 1, max: 1, short: "Change a volume of a cluster", names: volumes,
		long: "Changes whether a volume of a cluster is available. Volumes of one host have nothing that could be changed.", example: "corten volume update --availability drain shared",
		flags: func(f *pflag.FlagSet) {
			f.StringVar(&availability, "availability", "active", `"active", "pause" or "drain"`)
		},
	}
	v.run = func(ctx context.Context, a *app, args []string) error {
		api, err := a.engine()
		if err != nil {
			return err
		}
		var vol volume.Volume
		if err := api.Get(ctx, "/volumes/"+esc(args[0]), nil, &vol); err != nil {
			return err
		}
		if vol.ClusterVolume == nil {
			return &exitError{code: 1, text: "Can only update cluster volumes"}
		}
		if v.changed("availability") {
			vol.ClusterVolume.Spec.Availability = volume.Availability(availability)
		}
		version := strconv.FormatUint(vol.ClusterVolume.Version.Index, 10)
		req := engineapi.Request{Method: "PUT", Path: "/volumes/" + esc(vol.ClusterVolume.ID), Query: query("version", version), In: struct{ Spec *volume.ClusterVolumeSpec }{&vol.ClusterVolume.Spec}}
		return api.Call(ctx, req, nil)
	}
	return v
}
