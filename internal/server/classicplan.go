package server

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/engine/builds"
)

// plan is the Dockerfile as the classic builder numbers it: every instruction is a step, also those that make no layer and so have no vertex.
type plan []*planned

// planned is one instruction.
type planned struct {
	text  string
	stage string
	// place is its number among those of its stage that have a vertex ("[stage 2/3] RUN …"); 0: it has none.
	place int
	from  string // what a FROM stands on, as it is written; that of a stage in small letters
	step  *classicStep
}

const (
	defaultDockerfile = "Dockerfile"
	// maxDockerfile bounds what is read of one.
	maxDockerfile = 4 << 20
)

// planOf reads the Dockerfile of a context. One that cannot be read or understood gives no plan: the build will say why.
func planOf(ctx context.Context, contexts build.Contexts, name, target string) plan {
	files, release, err := contexts.Open(ctx, "dockerfile", build.ContextOptions{})
	if err != nil {
		return nil
	}
	defer release()
	text, err := readDockerfile(files, cmp.Or(name, defaultDockerfile))
	if err != nil {
		return nil
	}
	return parsePlan(text, target)
}

// remotePlan is planOf for a context at an address. What is fetched there for it is fetched for the build.
func (s *Server) remotePlan(ctx context.Context, ses *build.Session, address, name, target string) plan {
	files, err := s.Builds.Fetch(ctx, builds.FetchRequest{Address: address, Names: []string{cmp.Or(name, defaultDockerfile)}, Session: ses})
	if err != nil || len(files) == 0 {
		return nil
	}
	return parsePlan(files[0].Data, target)
}

func readDockerfile(files *build.Files, name string) (text []byte, err error) {
	root, err := os.OpenRoot("/proc/self/fd/" + strconv.Itoa(int(files.Root.Fd())))
	if err != nil {
		return nil, err
	}
	defer root.Close()
	st, err := root.Stat(strings.TrimPrefix(name, "/")) // a pipe would be waited for
	if err != nil || !st.Mode().IsRegular() {
		return nil, errors.Join(err, os.ErrInvalid)
	}
	f, err := root.Open(strings.TrimPrefix(name, "/"))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxDockerfile))
}

// parsePlan lists the instructions up to the end of the target.
func parsePlan(text []byte, target string) (p plan) {
	ast, err := parser.Parse(bytes.NewReader(text))
	if err != nil {
		return nil
	}
	stages, args, err := instructions.Parse(ast.AST, nil)
	if err != nil {
		return nil
	}
	for i := range args {
		p = append(p, &planned{text: args[i].String()})
	}
	seen := map[string]bool{"scratch": true}
	for i, st := range stages {
		name := strings.ToLower(st.Name)
		if name == "" {
			name = "stage-" + strconv.Itoa(i)
		}
		from, place := &planned{text: st.SourceCode, stage: name, from: strings.ToLower(st.BaseName)}, 0
		if !seen[from.from] {
			place++
			from.place = place
		}
		p = append(p, from)
		for _, cmd := range st.Commands {
			one := &planned{text: fmt.Sprint(cmd), stage: name}
			switch cmd.(type) {
			case *instructions.AddCommand, *instructions.CopyCommand, *instructions.RunCommand, *instructions.WorkdirCommand:
				place++
				one.place = place
			}
			p = append(p, one)
		}
		seen[name], seen[strings.ToLower(st.Name)] = true, true
		if target != "" && (strings.EqualFold(target, st.Name) || target == strconv.Itoa(i)) {
			break
		}
	}
	return p
}

// join finds the instruction of a vertex: "[build 2/3] RUN make". A step that is none (a trigger of the base image, ONBUILD) is told after the first of its stage.
func (p plan) join(step *classicStep) plan {
	head, _, _ := strings.Cut(strings.TrimPrefix(step.full, "["), "]")
	words := strings.Fields(head)
	if len(p) == 0 || len(words) == 0 {
		return p
	}
	place, of, _ := strings.Cut(words[len(words)-1], "/")
	n, _ := strconv.Atoi(place)
	total, _ := strconv.Atoi(of)
	stage := p[len(p)-1].stage
	if len(words) > 1 {
		stage = words[len(words)-2]
	}
	first, most := -1, 0
	for i, one := range p {
		if one.stage == stage {
			if first < 0 {
				first = i
			}
			most = max(most, one.place)
		}
	}
	if first < 0 {
		return p
	}
	triggers := max(0, total-most)
	if strings.HasPrefix(step.name, "ONBUILD ") {
		at := first + 1
		for at < len(p) && p[at].text == "" {
			at++
		}
		return append(p[:at:at], append(plan{{stage: stage, place: -1, step: step}}, p[at:]...)...)
	}
	if n > 1 || p[first].place == 0 {
		n -= triggers
	}
	verb, _, _ := strings.Cut(step.name, " ")
	for _, one := range p {
		if one.stage == stage && one.place == n && one.step == nil && strings.HasPrefix(strings.ToUpper(one.text), verb) {
			one.step = step
			return p
		}
	}
	return append(p, &planned{text: step.name, stage: stage, place: -1, step: step})
}

// numbers gives the number of an instruction, and how many there are.
func (p plan) numbers(at int) (n, of int) {
	for i, one := range p {
		if one.text == "" {
			continue
		}
		if of++; i <= at {
			n = of
		}
	}
	return n, of
}

// left tells that nothing of a stage is built: nobody needs it.
func (p plan) left(stage string) bool {
	places, steps := false, false
	for _, one := range p {
		if one.stage == stage {
			places, steps = places || one.place > 0, steps || one.step != nil
		}
	}
	return places && !steps
}
