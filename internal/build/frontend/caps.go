package frontend

import (
	"slices"

	gwpb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/apicaps"
	capspb "github.com/moby/buildkit/util/apicaps/pb"
)

// missing are the capabilities that this engine does not have, with the reason that is told to who asks for one.
var missing = map[apicaps.CapID]string{
	pb.CapRemoteCacheGHA:      "caches are kept in registries, folders and images here",
	pb.CapRemoteCacheS3:       "caches are kept in registries, folders and images here",
	pb.CapRemoteCacheAzBlob:   "caches are kept in registries, folders and images here",
	pb.CapSourcePolicySession: "policies come with the request here",
	gwpb.CapSolveInlineReturn: "results are returned by Return",
}

// LLBCaps are the capabilities of the solver, as frontends and clients ask for them.
func LLBCaps() []*capspb.APICap { return without(pb.Caps.All()) }

// Caps are the capabilities of the gateway.
func Caps() []*capspb.APICap { return without(gwpb.Caps.All()) }

func without(all []*capspb.APICap) []*capspb.APICap {
	for _, c := range all {
		if reason, ok := missing[apicaps.CapID(c.ID)]; ok {
			c.Enabled, c.DisabledReason, c.DisabledReasonMsg = false, "unsupported", reason
		}
	}
	return slices.Clip(all)
}
