package export

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/platforms"
	"github.com/in-toto/in-toto-golang/in_toto/slsa_provenance/common"
	slsa1 "github.com/in-toto/in-toto-golang/in_toto/slsa_provenance/v1"
	slsa "github.com/moby/buildkit/solver/llbsolver/provenance/types"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/reference"
)

// provenance tells how a result came to be (BuildKit, docs/attestations/slsa-definitions.md).
type provenance struct {
	*Trace
	options  provenanceOptions
	finished time.Time
	graph    graph
}

// provenanceOptions are the values of attest:slsa.
type provenanceOptions struct {
	max          bool
	version      slsa.ProvenanceSLSA
	builderID    string
	filename     string
	reproducible bool
	inlineOnly   bool
}

// parseProvenance reads the values of attest:provenance, as frontend/attestations.Parse splits them. ok is false when they switch it off.
func parseProvenance(values map[string]string) (o provenanceOptions, ok bool, err error) {
	o = provenanceOptions{max: true, version: slsa.ProvenanceSLSA1, filename: "provenance.json"}
	for name, value := range values {
		switch name {
		case "type": // buildx sends what --provenance and --attest were given whole
			if value != "provenance" {
				err = errs.New(errs.Invalid, "it is no provenance")
			}
		case "mode":
			switch value {
			case "min":
				o.max = false
			case "max", "full":
			default:
				err = errs.New(errs.Invalid, "choose min or max")
			}
		case "version":
			if o.version = slsa.ProvenanceSLSA(value); o.version.Validate() != nil {
				err = errs.New(errs.Invalid, "choose v0.2 or v1")
			}
		case "builder-id":
			o.builderID = value
		case "filename":
			if o.filename = value; value == "" || strings.Contains(value, "/") {
				err = errs.New(errs.Invalid, "a name of a file is wanted")
			}
		case "reproducible":
			o.reproducible, err = truth(value)
		case "inline-only":
			o.inlineOnly, err = truth(value)
		case "disabled":
			var off bool
			if off, err = truth(value); off {
				return o, false, err
			}
		default:
			err = errs.New(errs.Invalid, "not known")
		}
		if err != nil {
			return o, false, errs.New(errs.Invalid, "attest:provenance: %s=%q: %w", name, value, err)
		}
	}
	return o, true, nil
}

// attestation is the provenance as one; layers that the image turned out to have are told in mode max.
func (p *provenance) attestation(t *target) attestation {
	a := attestation{predicateType: slsa1.PredicateSLSAProvenance, path: p.options.filename, inlineOnly: p.options.inlineOnly}
	if p.options.version == slsa.ProvenanceSLSA02 {
		a.predicateType = provenanceURI + "v0.2"
	}
	a.predicate = func(context.Context) (json.RawMessage, error) {
		v1, err := p.predicate(t.blobs, t.epoch)
		if err != nil {
			return nil, err
		}
		if p.options.version == slsa.ProvenanceSLSA02 {
			return json.Marshal(v1.ConvertToSLSA02())
		}
		return json.Marshal(v1)
	}
	return a
}

// predicate tells it. Who asks for an image of a time (SOURCE_DATE_EPOCH) asks for the same bytes each time: what only this one run has, its id and its own times, is not told then.
func (p *provenance) predicate(layers []ocispec.Descriptor, epoch *time.Time) (*slsa.ProvenancePredicateSLSA1, error) {
	pred := &slsa.ProvenancePredicateSLSA1{}
	def, run := &pred.BuildDefinition, &pred.RunDetails
	def.BuildType = slsa.BuildKitBuildType1
	run.Builder.ID = p.options.builderID
	meta := &slsa.ProvenanceMetadataSLSA1{Hermetic: !p.graph.network, Reproducible: p.options.reproducible}
	started, finished := p.Started.UTC(), p.finished.UTC()
	meta.InvocationID, meta.StartedOn, meta.FinishedOn = p.ID, &started, &finished
	if epoch != nil {
		at := epoch.UTC()
		meta.InvocationID, meta.StartedOn, meta.FinishedOn = "", &at, &at
	}
	run.Metadata = meta

	args, vcs := p.arguments()
	meta.BuildKitMetadata.VCS = vcs
	def.ExternalParameters.ConfigSource = p.configSource(args)
	req := &def.ExternalParameters.Request
	req.Frontend, req.Args = p.Frontend, args
	for _, name := range slices.Sorted(maps.Keys(p.graph.locals)) {
		req.Locals = append(req.Locals, &slsa.LocalSource{Name: name})
	}
	def.InternalParameters.BuilderPlatform = platforms.Format(platforms.Normalize(p.Builder))
	deps, err := p.graph.materials()
	if err != nil {
		return nil, err
	}
	def.ResolvedDependencies = slices.Grow(def.ResolvedDependencies, len(deps))[:len(deps)]
	for i, m := range deps {
		def.ResolvedDependencies[i].URI, def.ResolvedDependencies[i].Digest = m.uri, m.digest
	}
	meta.Completeness.ResolvedDependencies = !p.graph.incomplete && len(p.graph.locals) == 0
	meta.Completeness.Request = p.Frontend != ""
	if !p.options.max {
		for name := range args {
			if strings.HasPrefix(name, "build-arg:") || strings.HasPrefix(name, "label:") {
				delete(args, name)
				meta.Completeness.Request = false
			}
		}
		return pred, nil
	}
	for _, id := range slices.Sorted(maps.Keys(p.graph.secrets)) {
		req.Secrets = append(req.Secrets, &slsa.Secret{ID: id, Optional: p.graph.secrets[id]})
	}
	for _, id := range slices.Sorted(maps.Keys(p.graph.ssh)) {
		req.SSH = append(req.SSH, &slsa.SSH{ID: id, Optional: p.graph.ssh[id]})
	}
	def.InternalParameters.BuildConfig, meta.BuildKitMetadata.Source = p.graph.config()
	if last := p.graph.last(); last != "" && len(layers) > 0 {
		meta.BuildKitMetadata.Layers = map[string][][]ocispec.Descriptor{last: {layers}}
	}
	return pred, nil
}

// Arguments that say something about this host or the caches, not about what is built.
var hostArgs = map[string]bool{"cgroup-parent": true, "image-resolve-mode": true, "platform": true, "cache-imports": true, "cache-from": true}

// arguments are those of the frontend that belong to the record, and what the client said of the version control of a local context.
func (p *provenance) arguments() (args, vcs map[string]string) {
	args = map[string]string{}
	contextKey := p.Attrs["contextkey"]
	if contextKey == "" {
		contextKey = "context"
	}
	for name, value := range p.Attrs {
		if rest, ok := strings.CutPrefix(name, "vcs:"); ok {
			if rest == "source" {
				value = withoutPassword(value)
			}
			if vcs == nil {
				vcs = map[string]string{}
			}
			if value != "" {
				vcs[rest] = value
			}
			continue
		}
		if hostArgs[name] || strings.HasPrefix(name, "attest:") {
			continue
		}
		if name == contextKey || strings.HasPrefix(name, "context:") {
			value = withoutPassword(value)
		}
		args[name] = value
	}
	return args, vcs
}

// withoutPassword keeps what stands before the host of an address secret.
func withoutPassword(s string) string {
	u, err := url.Parse(s)
	if err != nil || u.User == nil {
		return s
	}
	if _, has := u.User.Password(); has {
		u.User = url.UserPassword("xxxxx", "xxxxx")
	} else if u.Scheme != "ssh" && u.Scheme != "git" {
		u.User = url.User("xxxxx")
	}
	return u.String()
}

// configSource is where the build's description came from: the remote context, if there is one, and the file in it.
func (p *provenance) configSource(args map[string]string) (src slsa.ProvenanceConfigSourceSLSA1) {
	src.Path = args["filename"]
	if src.Path == "" && strings.HasPrefix(p.Frontend, "dockerfile.") {
		src.Path = "Dockerfile"
	}
	remote := args["context"]
	for _, m := range p.graph.sources {
		if m.kind != sourceImage && remote != "" && sameAddress(m.uri, remote) {
			src.URI, src.Digest = m.uri, m.digest
		}
	}
	return src
}

// sameAddress tells whether a source is what an argument names: equal but for how it is written.
func sameAddress(a, b string) bool {
	trim := func(s string) string {
		s, fragment, _ := strings.Cut(withoutPassword(s), "#")
		fragment, _, _ = strings.Cut(fragment, ":")
		for _, scheme := range []string{"https://", "http://", "git://"} {
			s = strings.TrimPrefix(s, scheme)
		}
		return strings.TrimSuffix(s, ".git") + "#" + fragment
	}
	return trim(a) == trim(b)
}

// materials are the sources in the order in which they are listed, each once.
func (g *graph) materials() (all []source, err error) {
	seen := map[string]bool{}
	list := slices.Clone(g.sources)
	slices.SortStableFunc(list, func(a, b source) int { return a.kind - b.kind })
	for _, m := range list {
		if m.uri == "" {
			return nil, fmt.Errorf("a source without an address")
		}
		key := m.uri + fmt.Sprint(m.digest)
		if seen[key] {
			continue
		}
		seen[key] = true
		all = append(all, m)
	}
	return all, nil
}

// Kinds of sources, in the order in which they are listed.
const (
	sourceImage = iota
	sourceGit
	sourceHTTP
)

// source is one material.
type source struct {
	kind   int
	uri    string
	digest common.DigestSet
}

func imageSource(ref reference.Ref, p *ocispec.Platform, sum string) source {
	ref.Digest = ""
	s := source{kind: sourceImage, uri: imageURL(ref, p)}
	s.digest = digestSet(sum)
	return s
}

func digestSet(sum string) common.DigestSet {
	algorithm, hex, ok := strings.Cut(sum, ":")
	if !ok {
		return nil
	}
	return common.DigestSet{algorithm: hex}
}

// commitSet is that of a git commit, whose length tells the algorithm.
func commitSet(commit string) common.DigestSet {
	switch len(commit) {
	case 40:
		return common.DigestSet{"sha1": commit}
	case 64:
		return common.DigestSet{"sha256": commit}
	}
	return nil
}

func stepName(i int) string { return "step" + digits(i) }

func digits(i int) string { return strconv.Itoa(i) }
