package step

import (
	"runtime"

	"github.com/moby/buildkit/solver/pb"

	"corten.dev/corten/internal/errs"
)

// runnable tells whether programs of a platform run here.
func runnable(p *pb.Platform) error {
	if p.GetOS() != "" && p.GetOS() != "linux" {
		return errs.New(errs.NotImplemented, "platform %s/%s: steps of other operating systems cannot be run on this host", p.GetOS(), p.GetArchitecture())
	}
	if p.GetArchitecture() == "" || p.GetArchitecture() == runtime.GOARCH {
		return nil
	}
	return nil
}
