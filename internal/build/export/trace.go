package export

import (
	"context"
	"time"

	"github.com/moby/buildkit/frontend/attestations"
	"github.com/moby/buildkit/solver/pb"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"corten.dev/corten/internal/build/solve"
	"corten.dev/corten/internal/errs"
)

// Trace is what is known of a build that provenance is wanted of.
type Trace struct {
	ID       string // names the build
	Started  time.Time
	Frontend string
	Attrs    map[string]string // of the frontend, as the asker gave them
	Builder  ocispec.Platform  // this host's
	// Solved gives what the solver made for a platform, and what is known of the lines that it came from; nil for the empty tree.
	Solved func(platform string) (*solve.Result, *pb.Source)
}

// CheckAttestations refuses attest:… values of a frontend that are not understood.
func CheckAttestations(attrs map[string]string) error {
	_, _, err := provenanceWanted(attrs)
	return err
}

func provenanceWanted(attrs map[string]string) (ProvenanceOptions, bool, error) {
	all, err := attestations.Parse(attrs)
	if err != nil {
		return ProvenanceOptions{}, false, errs.New(errs.Invalid, "attestations: %w", err)
	}
	values, ok := all[attestations.KeyTypeProvenance]
	if !ok {
		return ProvenanceOptions{}, false, nil
	}
	return ParseProvenance(values)
}

// Provenance is what Job.Provenance wants; nil when the asker does not want any (attest:provenance).
func (tr Trace) Provenance() (func(ctx context.Context, platform string) (*Provenance, error), error) {
	opts, wanted, err := provenanceWanted(tr.Attrs)
	if err != nil || !wanted {
		return nil, err
	}
	return func(_ context.Context, platform string) (*Provenance, error) {
		p := &Provenance{Options: opts, ID: tr.ID, Started: tr.Started, Finished: time.Now(), Frontend: tr.Frontend, Args: tr.Attrs, Builder: tr.Builder}
		res, src := tr.Solved(platform)
		if res == nil {
			return p, nil
		}
		p.Graph.Source = src
		return p, res.Walk(p.Graph.Add)
	}, nil
}
