package steps

import (
	"slices"
	"strings"

	"github.com/moby/buildkit/solver/pb"

	"corten.dev/corten/internal/container"
	"corten.dev/corten/internal/engine/hostspec"
	"corten.dev/corten/internal/errs"
)

// known tells which devices this host describes; hostspec.CDI has it.
type known interface {
	Devices() (names, warnings []string)
}

var _ known = (*hostspec.CDI)(nil)

// chosen are the devices that a step gets (RUN --device): vendor.com/class=name is one, vendor.com/class the first of its class, and vendor.com/class=* all of them. One that need not be there
// is left out where it is not.
func chosen(wanted []*pb.CDIDevice, host known) ([]container.DeviceRequest, error) {
	if len(wanted) == 0 {
		return nil, nil
	}
	have, warnings := host.Devices()
	slices.Sort(have)
	var names []string
	for _, w := range wanted {
		class, name, one := strings.Cut(w.GetName(), "=")
		var found []string
		for _, device := range have {
			kind, _, _ := strings.Cut(device, "=")
			switch {
			case one && name != "*" && device == w.GetName(), one && name == "*" && kind == class, !one && kind == class && len(found) == 0:
				found = append(found, device)
			}
		}
		if len(found) == 0 && !w.GetOptional() {
			why := ""
			if len(warnings) > 0 {
				why = " (" + strings.Join(warnings, "; ") + ")"
			}
			return nil, errs.New(errs.NotFound, "required device %q is not registered on this host%s: describe it in a file of the Container Device Interface, in /etc/cdi or /run/cdi", w.GetName(), why)
		}
		names = append(names, found...)
	}
	if len(names) == 0 {
		return nil, nil
	}
	return []container.DeviceRequest{{Driver: "cdi", DeviceIDs: names}}, nil
}
