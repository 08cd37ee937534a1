package export

import (
	"maps"
	"strings"

	slsa "github.com/moby/buildkit/solver/llbsolver/provenance/types"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

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
	for i, s := range g.steps {
		step := slsa.BuildStep{ID: stepName(i), Op: bare(s.Vertex.Op)}
		for _, in := range s.Vertex.Inputs {
			if at, ok := g.at[in.Vertex.Digest]; ok {
				step.Inputs = append(step.Inputs, stepName(at)+":"+digits(in.Index))
			}
		}
		cfg.DigestMapping[s.Vertex.Digest] = step.ID
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

// bare is an op without its inputs, which the steps name. What may hold secrets of the asker (the values of proxies) is left out.
func bare(op *pb.Op) *pb.Op {
	again := op.CloneVT()
	again.Inputs = nil
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
