package export

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	gatewaypb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/result"
	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/safefs"
)

// Bounds of what a frontend may give as attestations.
const (
	maxStatement  = 80 << 20
	maxBundle     = 1000
	provenanceURI = "https://slsa.dev/provenance/"
	statementType = "https://in-toto.io/Statement/v1"
)

// attestation is something that is said about a result: the content of a predicate, and what it is about.
type attestation struct {
	predicateType string
	path          string // its name as a file
	inlineOnly    bool   // for images only, never a file
	core          bool   // a scanner made it of the result itself
	subjects      []result.InTotoSubject
	predicate     func(ctx context.Context) (json.RawMessage, error)
}

// Statement is an attestation as it is written (in-toto attestation framework, Statement v1).
type Statement struct {
	Type          string          `json:"_type"`
	PredicateType string          `json:"predicateType"`
	Subject       []Subject       `json:"subject"`
	Predicate     json.RawMessage `json:"predicate"`
}

// Subject is what a statement is about.
type Subject struct {
	Name   string            `json:"name"`
	Digest map[string]string `json:"digest"`
}

// statement is about self, unless the attestation names subjects of its own.
func (a attestation) statement(ctx context.Context, self []Subject) (Statement, error) {
	predicate, err := a.predicate(ctx)
	if err != nil {
		return Statement{}, fmt.Errorf("attestation %s: %w", a.path, err)
	}
	subjects := a.subjects
	if len(subjects) == 0 {
		subjects = []result.InTotoSubject{{Kind: gatewaypb.InTotoSubjectKind_Self}}
	}
	s := Statement{Type: statementType, PredicateType: a.predicateType, Subject: []Subject{}, Predicate: predicate}
	for _, sub := range subjects {
		if sub.Kind == gatewaypb.InTotoSubjectKind_Raw {
			name := sub.Name
			if name == "" {
				name = "_"
			}
			s.Subject = append(s.Subject, Subject{name, result.ToDigestMap(sub.Digest...)})
			continue
		}
		for _, it := range self {
			s.Subject = append(s.Subject, it)
			if sub.Name != "" && sub.Name != "_" {
				s.Subject = append(s.Subject, Subject{sub.Name, it.Digest})
			}
		}
	}
	return s, nil
}

// attestations are those that the frontend gave for a platform, and the provenance if the asker wants it.
func (e *Exporter) attestations(ctx context.Context, job Job, t *target) (all []attestation, err error) {
	for _, given := range job.Result.Attestations[t.id] {
		some, err := e.unbundle(ctx, job, given)
		if err != nil {
			return nil, fmt.Errorf("attestation %s: %w", given.Path, err)
		}
		all = append(all, some...)
	}
	for _, a := range all {
		if strings.HasPrefix(a.predicateType, provenanceURI) {
			return nil, errs.New(errs.Invalid, "attestation %s: a frontend cannot say where a build comes from", a.path)
		}
	}
	if job.Trace == nil {
		return all, nil
	}
	p, err := job.Trace.provenance(job.Walk, t.id)
	if err != nil {
		return nil, fmt.Errorf("provenance: %w", err)
	}
	if p != nil {
		all = append(all, p.attestation(t))
	}
	return all, nil
}

// unbundle reads one attestation of the frontend; a bundle is a folder of statements. What scanners made of the result itself comes first.
func (e *Exporter) unbundle(ctx context.Context, job Job, given result.Attestation[*build.Output]) ([]attestation, error) {
	one := attestation{predicateType: given.InToto.PredicateType, path: given.Path, subjects: given.InToto.Subjects}
	one.inlineOnly = string(given.Metadata[result.AttestationInlineOnlyKey]) == "true"
	if given.Kind == gatewaypb.AttestationKind_InToto {
		one.predicate = func(ctx context.Context) (json.RawMessage, error) {
			if given.ContentFunc != nil {
				return given.ContentFunc(ctx)
			}
			var data []byte
			err := e.inTree(ctx, job, given.Ref, func(root *os.File) (err error) {
				data, err = safefs.ReadFile(root, given.Path, maxStatement)
				return err
			})
			return data, err
		}
		return []attestation{one}, nil
	}
	var all []attestation
	err := e.inTree(ctx, job, given.Ref, func(root *os.File) (err error) {
		all, err = readBundle(root, one)
		return err
	})
	if core, ok := given.Metadata[result.AttestationSBOMCore]; ok {
		for i := range all {
			name, _, _ := strings.Cut(path.Base(all[i].path), ".")
			all[i].core = name == string(core)
		}
		slices.SortStableFunc(all, func(a, b attestation) int { return rank(b) - rank(a) })
	}
	return all, err
}

func rank(a attestation) int {
	if a.core {
		return 1
	}
	return 0
}

// inTree calls fn with the files of a tree.
func (e *Exporter) inTree(ctx context.Context, job Job, out *build.Output, fn func(root *os.File) error) error {
	if out == nil || out.Chain == "" {
		return errs.New(errs.Invalid, "the frontend gave no tree to read it from")
	}
	if _, err := e.layersOf(ctx, job.Progress, *out); err != nil {
		return err
	}
	m, err := e.Trees.View(ctx, out.Chain)
	if err != nil {
		return err
	}
	return errors.Join(fn(m.Root), m.Close())
}

// readBundle reads the statements of a folder.
func readBundle(root *os.File, like attestation) (all []attestation, err error) {
	dir, err := safefs.Open(root, like.path, os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(maxBundle + 1)
	if err != nil && len(names) == 0 {
		return nil, err
	}
	if len(names) > maxBundle {
		return nil, errs.New(errs.Invalid, "a bundle of more than %d statements", maxBundle)
	}
	slices.Sort(names)
	for _, name := range names {
		raw, err := safefs.ReadFile(root, path.Join("/", like.path, name), maxStatement)
		if err != nil {
			return nil, err
		}
		a := like
		if a.predicateType, a.subjects, a.predicate, err = readStatement(raw); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		if like.predicateType != "" && a.predicateType != like.predicateType {
			return nil, errs.New(errs.Invalid, "%s says %q, expected %q", name, a.predicateType, like.predicateType)
		}
		a.path = path.Join(like.path, name)
		all = append(all, a)
	}
	return all, nil
}

func readStatement(raw []byte) (predicateType string, subjects []result.InTotoSubject, predicate func(context.Context) (json.RawMessage, error), err error) {
	var s Statement
	if err := json.Unmarshal(raw, &s); err != nil {
		return "", nil, nil, errs.New(errs.Invalid, "no statement: %w", err)
	}
	for _, sub := range s.Subject {
		var sums []digest.Digest
		for algorithm, hex := range sub.Digest {
			sums = append(sums, digest.NewDigestFromEncoded(digest.Algorithm(algorithm), hex))
		}
		subjects = append(subjects, result.InTotoSubject{Kind: gatewaypb.InTotoSubjectKind_Raw, Name: sub.Name, Digest: sums})
	}
	return s.PredicateType, subjects, func(context.Context) (json.RawMessage, error) { return s.Predicate, nil }, nil
}
