package export

import (
	"encoding/json"
	"time"

	slsa1 "github.com/in-toto/in-toto-golang/in_toto/slsa_provenance/v1"
	"github.com/moby/buildkit/frontend/attestations"
	slsa "github.com/moby/buildkit/solver/llbsolver/provenance/types"
	"github.com/moby/buildkit/solver/pb"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"corten.dev/corten/internal/build/solve"
	"corten.dev/corten/internal/errs"
)

// Trace is what is known of a request whose result's provenance may be wanted: its attributes say (attest:provenance).
type Trace struct {
	ID       string // names the build
	Started  time.Time
	Frontend string
	Attrs    map[string]string // of the frontend, as the asker gave them
	Builder  ocispec.Platform  // this host's
	// Source gives what is known of the lines that a platform's result came from (pb.Definition.Source); may be nil.
	Source func(platform string) *pb.Source
}

// CheckAttestations refuses attest:… values of a frontend that are not understood.
func CheckAttestations(attrs map[string]string) error {
	_, _, err := provenanceWanted(attrs)
	return err
}

func provenanceWanted(attrs map[string]string) (provenanceOptions, bool, error) {
	all, err := attestations.Parse(attrs)
	if err != nil {
		return provenanceOptions{}, false, errs.New(errs.Invalid, "attestations: %w", err)
	}
	values, ok := all[attestations.KeyTypeProvenance]
	if !ok {
		return provenanceOptions{}, false, nil
	}
	return parseProvenance(values)
}

// Record is the provenance of one platform for the records of builds: all that is known, whatever the asker wants of it elsewhere.
func (tr *Trace) Record(walk func(string, func(solve.Step) error) error, platform string) (predicateType string, predicate []byte, err error) {
	opts, _, err := parseProvenance(nil)
	if err != nil {
		return "", nil, err
	}
	p, err := tr.of(opts, walk, platform)
	if err != nil {
		return "", nil, err
	}
	pred, err := p.predicate(nil, nil)
	if err != nil {
		return "", nil, err
	}
	predicate, err = json.MarshalIndent(pred, "", "  ")
	return slsa1.PredicateSLSAProvenance, predicate, err
}

// ToldProvenance is a predicate of Record in the form of v0.2, in which clients write it to the files of --metadata-file: whole, or what the result was made of only.
func ToldProvenance(predicate []byte, whole bool) ([]byte, error) {
	var pred slsa.ProvenancePredicateSLSA1
	if err := json.Unmarshal(predicate, &pred); err != nil {
		return nil, err
	}
	told := pred.ConvertToSLSA02()
	if !whole {
		told.BuildConfig, told.Metadata = nil, nil
	}
	return json.Marshal(told)
}

// provenance is that of one platform; nil when the asker does not want any.
func (tr *Trace) provenance(walk func(string, func(solve.Step) error) error, platform string) (*provenance, error) {
	opts, wanted, err := provenanceWanted(tr.Attrs)
	if err != nil || !wanted {
		return nil, err
	}
	return tr.of(opts, walk, platform)
}

func (tr *Trace) of(opts provenanceOptions, walk func(string, func(solve.Step) error) error, platform string) (p *provenance, err error) {
	p = &provenance{Trace: tr, options: opts, finished: time.Now()}
	if tr.Source != nil {
		p.graph.source = tr.Source(platform)
	}
	if walk != nil {
		err = walk(platform, p.graph.add)
	}
	return p, err
}
