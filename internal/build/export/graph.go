package export

import (
	"maps"
	"strings"

	slsa "github.com/moby/buildkit/solver/llbsolver/provenance/types"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/protobuf/proto"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/build/solve"
	"corten.dev/corten/internal/reference"
)

// graph is what provenance tells of the steps of a result, which are added one by one, inputs first.
type graph struct {
	source *pb.Source // where the steps stand in the files that they came from; nil: not known

	steps   []solve.Step
	at      map[digest.Digest]int
	sources []source
	locals  map[string]bool
	secrets map[string]bool // id to whether it is optional
	ssh     map[string]bool
	network bool // a step could reach it
	// incomplete: something went in that has no digest.
	incomplete bool
}

// add notes one step.
func (g *graph) add(step solve.Step) error {
	if g.at == nil {
		g.at, g.locals, g.secrets, g.ssh = map[digest.Digest]int{}, map[string]bool{}, map[string]bool{}, map[string]bool{}
	}
	if _, again := g.at[step.Vertex.Digest]; again || step.Vertex.Op == nil {
		return nil
	}
	g.at[step.Vertex.Digest] = len(g.steps)
	g.steps = append(g.steps, step)
	switch op := step.Vertex.Op.Op.(type) {
	case *pb.Op_Source:
		sum := ""
		if len(step.Outputs) > 0 {
			sum = step.Outputs[0].Pin
		}
		return g.addSource(op.Source, step, sum)
	case *pb.Op_Exec:
		g.addExec(op.Exec)
	}
	return nil
}

func (g *graph) addSource(op *pb.SourceOp, step solve.Step, sum string) error {
	scheme, rest, _ := strings.Cut(op.Identifier, "://")
	switch scheme {
	case "docker-image", "oci-layout":
		ref, err := reference.Parse(rest)
		if err != nil {
			return err
		}
		if sum == "" && ref.Digest != "" {
			sum = ref.Digest
		}
		if len(step.Outputs) > 0 && step.Outputs[0].Image != "" {
			sum = step.Outputs[0].Image.String()
		}
		g.known(imageSource(ref, platformOf(step.Vertex.Op.Platform), sum))
	case "git":
		uri := op.Attrs[pb.AttrFullRemoteURL]
		if uri == "" {
			uri = "https://" + rest
		} else if _, fragment, ok := strings.Cut(rest, "#"); ok {
			uri += "#" + fragment
		}
		if sum == "" {
			sum = op.Attrs["git.checksum"]
		}
		g.known(source{kind: sourceGit, uri: withoutPassword(uri), digest: commitSet(strings.TrimPrefix(strings.TrimPrefix(sum, "sha1:"), "sha256:"))})
	case "http", "https":
		if sum == "" {
			sum = op.Attrs[pb.AttrHTTPChecksum]
		}
		g.known(source{kind: sourceHTTP, uri: withoutPassword(op.Identifier), digest: digestSet(sum)})
	case "local":
		g.locals[rest] = true
	default:
		g.incomplete = true
	}
	return nil
}

func (g *graph) known(s source) {
	if len(s.digest) == 0 {
		g.incomplete = true
	}
	g.sources = append(g.sources, s)
}

func platformOf(p *pb.Platform) *ocispec.Platform {
	if p == nil {
		return nil
	}
	return &ocispec.Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant, OSVersion: p.OSVersion, OSFeatures: p.OSFeatures}
}

func (g *graph) addExec(op *pb.ExecOp) {
	if op.Network != pb.NetMode_NONE {
		g.network = true
	}
	for _, m := range op.Mounts {
		if m.MountType == pb.MountType_SECRET && m.SecretOpt != nil {
			note(g.secrets, m.SecretOpt.ID, m.SecretOpt.Optional)
		}
		if m.MountType == pb.MountType_SSH && m.SSHOpt != nil {
			note(g.ssh, m.SSHOpt.ID, m.SSHOpt.Optional)
		}
	}
	for _, s := range op.Secretenv {
		note(g.secrets, s.ID, s.Optional)
	}
}

// note adds an id; it is optional when all who want it can do without.
func note(all map[string]bool, id string, optional bool) {
	was, known := all[id]
	all[id] = optional && (was || !known)
}

// last names the output that the result is.
func (g *graph) last() string {
	if len(g.steps) == 0 {
		return ""
	}
	return stepName(len(g.steps)-1) + ":0"
}

// config is the graph as BuildKit writes it, and the files that it came from.
func (g *graph) config() (*slsa.BuildConfig, *slsa.Source) {
	cfg := &slsa.BuildConfig{DigestMapping: map[digest.Digest]string{}}
	names := map[digest.Digest]digest.Digest{}
	for i, s := range g.steps {
		step := slsa.BuildStep{ID: stepName(i), Op: bare(s.Vertex.Op)}
		for _, in := range s.Vertex.Inputs {
			if at, ok := g.at[in.Vertex.Digest]; ok {
				step.Inputs = append(step.Inputs, stepName(at)+":"+digits(in.Index))
			}
		}
		cfg.DigestMapping[lasting(s.Vertex, names)] = step.ID
		cfg.Definition = append(cfg.Definition, step)
	}
	if g.source == nil {
		return cfg, nil
	}
	src := &slsa.Source{Locations: map[string]*pb.Locations{}}
	for dgst, loc := range maps.All(g.source.Locations) {
		if at, ok := g.at[digest.Digest(dgst)]; ok && len(loc.Locations) > 0 {
			src.Locations[stepName(at)] = loc
		}
	}
	for _, info := range g.source.Infos {
		src.Infos = append(src.Infos, slsa.SourceInfo{Filename: info.Filename, Language: info.Language, Data: info.Data})
	}
	return cfg, src
}

// lasting is the digest of a vertex without what only this one build has: the ids of its session. names has those of its inputs, and gets its own. Where there are no such ids it is the
// vertex' digest.
func lasting(v *build.Vertex, names map[digest.Digest]digest.Digest) digest.Digest {
	op := v.Op.CloneVT()
	changed := forgetSession(op)
	for _, in := range op.Inputs {
		if name, ok := names[digest.Digest(in.Digest)]; ok && in.Digest != string(name) {
			in.Digest, changed = string(name), true
		}
	}
	name := v.Digest
	if changed {
		if raw, err := (proto.MarshalOptions{Deterministic: true}).Marshal(op); err == nil {
			name = digest.FromBytes(raw)
		}
	}
	names[v.Digest] = name
	return name
}

// forgetSession takes ids of the build's session out of a source.
func forgetSession(op *pb.Op) (changed bool) {
	s, ok := op.Op.(*pb.Op_Source)
	if !ok {
		return false
	}
	for _, key := range []string{pb.AttrLocalSessionID, pb.AttrLocalUniqueID, pb.AttrOCILayoutSessionID} {
		if _, ok := s.Source.Attrs[key]; ok {
			delete(s.Source.Attrs, key)
			changed = true
		}
	}
	return changed
}

// bare is an op without its inputs, which the steps name. What may hold secrets of the asker (the values of proxies) is left out.
func bare(op *pb.Op) *pb.Op {
	again := op.CloneVT()
	again.Inputs = nil
	forgetSession(again)
	if e, ok := again.Op.(*pb.Op_Exec); ok && e.Exec.Meta != nil {
		e.Exec.Meta.ProxyEnv = nil
	}
	if s, ok := again.Op.(*pb.Op_Source); ok {
		s.Source.Identifier = withoutPassword(s.Source.Identifier)
		if remote := s.Source.Attrs[pb.AttrFullRemoteURL]; remote != "" {
			s.Source.Attrs[pb.AttrFullRemoteURL] = withoutPassword(remote)
		}
	}
	return again
}
