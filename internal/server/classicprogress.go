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
//	Step 1/4 : FROM docker.io/library/busybox
//	Step 2/4 : ENV A=b
//	Step 3/4 : RUN make
//	 ---> Using cache
//
// Every instruction of the Dockerfile is a step, as far as a stage is needed. Where the Dockerfile is not at hand (a context at an address), only what has a vertex counts.
type classic struct {
	out   *progress
	quiet bool
	plan  plan
	steps []*classicStep
	by    map[digest.Digest]*classicStep
	head  int // the step that is being told
}

type classicStep struct {
	name      string
	full      string // with its place in front
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
	c.advance(false)
}

// advance tells what can be told in order. last: nothing else will happen.
func (c *classic) advance(last bool) {
	if c.plan == nil {
		for c.head < len(c.steps) && (c.tell(c.steps[c.head], c.head+1, len(c.steps)) || last) {
			c.head++
		}
		return
	}
	for c.head < len(c.plan) && (len(c.steps) > 0 || last) {
		one := c.plan[c.head]
		n, of := c.plan.numbers(c.head)
		switch {
		case one.step != nil:
			if one.text != "" {
				one.step.name = one.text
			}
			if !c.tell(one.step, n, of) {
				return
			}
		case one.text != "" && !c.plan.left(one.stage): // no vertex of its own: none at all, or that of an equal step
			c.say(fmt.Sprintf("Step %d/%d : %s\n", n, of, one.text))
		}
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
		step = &classicStep{name: name, full: v.Name}
		c.by[v.Digest] = step
		c.steps = append(c.steps, step)
		c.plan = c.plan.join(step)
	}
	step.begun = step.begun || v.Started != nil
	step.completed = step.completed || v.Completed != nil
	step.cached = step.cached || v.Cached
}

// tell says what is new of a step, and whether that was all.
func (c *classic) tell(step *classicStep, n, of int) (over bool) {
	if !step.begun && !step.completed {
		return false
	}
	if !step.told {
		step.told = true
		if trigger, ok := strings.CutPrefix(step.name, "ONBUILD "); ok && c.plan != nil {
			c.say("# Executing build trigger: " + trigger + "\n")
		} else {
			c.say(fmt.Sprintf("Step %d/%d : %s\n", n, of, step.name))
		}
	}
	if len(step.output) > 0 {
		c.say(string(step.output))
		step.output = nil
	}
	if step.completed && step.cached && !strings.HasPrefix(step.name, "FROM ") { // an image that is there is no step saved
		c.say(" ---> Using cache\n")
	}
	return step.completed
}

// finish tells what waited for a step that never ran, unless the build failed there.
func (c *classic) finish(err error) { c.advance(err == nil || c.plan == nil) }

func (c *classic) say(text string) {
	if !c.quiet {
		c.out.say(text)
	}
}

func jsonError(code int, text string) *jsonstream.Error {
	return &jsonstream.Error{Code: code, Message: text}
}
