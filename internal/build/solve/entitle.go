package solve

import (
	"strings"

	"github.com/moby/buildkit/solver/pb"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/errs"
)

// grants are the entitlements of a job.
type grants struct {
	network, insecure bool
	allDevices        bool
	devices           map[string]string // by the name that steps use: what it stands for
}

// parseGrants reads entitlements as BuildKit writes them. One that is not known grants nothing.
func parseGrants(all []string) grants {
	g := grants{devices: map[string]string{}}
	for _, text := range all {
		name, value, _ := strings.Cut(text, "=")
		switch {
		case text == "network.host":
			g.network = true
		case text == "security.insecure":
			g.insecure = true
		case name == "device" && value == "":
			g.allDevices = true
		case name == "device":
			device, options, _ := strings.Cut(value, ",")
			as := device
			for option := range strings.SplitSeq(options, ",") {
				if alias, ok := strings.CutPrefix(option, "alias="); ok {
					as = alias
				}
			}
			g.devices[as] = device
		}
	}
	return g
}

// check refuses a step that wants what was not granted, in BuildKit's words. Devices that were granted under another name are put in their place.
func (g grants) check(v *build.Vertex) error {
	exec := v.Op.GetExec()
	if exec == nil {
		return nil
	}
	if exec.Network == pb.NetMode_HOST && !g.network {
		return errs.New(errs.Forbidden, "network.host is not allowed")
	}
	if exec.Security == pb.SecurityMode_INSECURE && !g.insecure {
		return errs.New(errs.Forbidden, "security.insecure is not allowed")
	}
	var refused []string
	for _, device := range exec.CdiDevices {
		if device == nil {
			return errs.New(errs.Invalid, "invalid exec op with a device that is nothing")
		}
		if as, ok := g.device(device.Name); ok {
			device.Name = as
		} else {
			refused = append(refused, device.Name)
		}
	}
	switch len(refused) {
	case 0:
		return nil
	case 1:
		return errs.New(errs.Forbidden, "device %s is requested by the build but not allowed", refused[0])
	}
	return errs.New(errs.Forbidden, "devices %s are requested by the build but not allowed", strings.Join(refused, ", "))
}

// device tells what a step gets that asks for a device: a grant of a class ("vendor.com/gpu") is one of all its devices.
func (g grants) device(name string) (as string, ok bool) {
	if as, ok := g.devices[name]; ok {
		return as, true
	}
	class, _, _ := strings.Cut(name, "=")
	if g.devices[class] == class || g.devices[class+"=*"] != "" {
		return name, true
	}
	return name, g.allDevices
}
