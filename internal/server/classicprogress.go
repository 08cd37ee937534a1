package server

import (
	"fmt"
	"strings"

	"github.com/moby/moby/api/types/jsonstream"
	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/build"
)

// classic tells a build as Docker's first builder did: one step after the other. Steps that run side by side are told in their order, the output of later ones waits.
//
//	Step 1/3 : FROM docker.io/library/busybox
//	Step 2/3 : RUN make
//	 ---> Using cache
type classic struct {
	out   *progress
	quiet bool
	steps []*classicStep
	by    map[digest.Digest]*classicStep
	head  int // the step that is being told
}

type classicStep struct {
	name      string
	begun     bool
	completed bool
	cached    bool
	told      bool // its first line
	output    []byte
}

// update takes what happened.
func (c *classic) update(st build.Status) {
	if c.by == nil {
		c.by = map[digest.Digest]*classicStep{}
	}
	for i := range st.Vertexes {
		c.vertex(&st.Vertexes[i])
	}
	for _, l := range st.Logs {
		if step := c.by[l.Vertex]; step != nil {
			step.output = append(step.output, l.Data...)
		}
	}
	for i := range st.Warnings {
		c.say("[Warning] " + string(st.Warnings[i].Short) + "\n")
	}
	for c.head < len(c.steps) && c.tell(c.steps[c.head]) {
		c.head++
	}
}

func (c *classic) vertex(v *build.VertexStatus) {
	step := c.by[v.Digest]
	if step == nil {
		if strings.HasPrefix(v.Name, "[internal]") || !strings.HasPrefix(v.Name, "[") {
			return
		}
		_, name, _ := strings.Cut(v.Name, "] ")
		step = &classicStep{name: name}
		c.by[v.Digest] = step
		c.steps = append(c.steps, step)
	}
	step.begun = step.begun || v.Started != nil
	step.completed = step.completed || v.Completed != nil
	step.cached = step.cached || v.Cached
}

// tell says what is new of a step, and whether that was all.
func (c *classic) tell(step *classicStep) (over bool) {
	if !step.begun && !step.completed {
		return false
	}
	if !step.told {
		step.told = true
		c.say(fmt.Sprintf("Step %d/%d : %s\n", c.head+1, len(c.steps), step.name))
	}
	if len(step.output) > 0 {
		c.say(string(step.output))
		step.output = nil
	}
	if step.completed && step.cached {
		c.say(" ---> Using cache\n")
	}
	return step.completed
}

// finish tells what waited for a step that never ran.
func (c *classic) finish() {
	for ; c.head < len(c.steps); c.head++ {
		c.tell(c.steps[c.head])
	}
}

func (c *classic) say(text string) {
	if !c.quiet {
		c.out.say(text)
	}
}

func jsonError(code int, text string) *jsonstream.Error {
	return &jsonstream.Error{Code: code, Message: text}
}
