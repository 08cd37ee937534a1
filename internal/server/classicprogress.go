package server

import (
	"fmt"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/jsonstream"
	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/build"
)

// classic tells a build as Docker's first builder did: one step after the other. Steps that run side by side are told in their order, the output of later ones waits.
//
//	Step 1/5 : FROM docker.io/library/busybox
//	 ---> 29e47d10076d                             the image's id; where it has none here, its manifest's
//	Step 2/5 : ENV A=b
//	 ---> 29e47d10076d                             nothing is kept for it: what stood before
//	Step 3/5 : RUN echo hi
//	 ---> Running in a0643f691f82                  the id of the process: its cgroup's and its tree's
//	hi
//	Removing intermediate container a0643f691f82   unless rm=0
//	 ---> ec3ee9d16a53                             the id of the step's record, as `builder du` has it
//	Step 4/5 : RUN make
//	 ---> Using cache
//	 ---> 87eb17df359f
//	Step 5/5 : CMD ["x"]
//	 ---> dfe001fdfdd0                             the last step's is the id of the image
//	Successfully built dfe001fdfdd0
//
// Each is 12 hexadecimal digits of an id of ours. Every instruction of the Dockerfile is a step, as far as a stage is needed. Where the Dockerfile cannot be read (the build
// will say why), only what has a vertex counts.
type classic struct {
	out   *progress
	quiet bool
	// kept: no step is told as taken away; failedToo: those of failed steps are told, too.
	kept, failedToo bool
	// imageOf gives the id of an image by its name; "" when it has none here.
	imageOf func(name string) string
	plan    plan
	steps   []*classicStep
	by      map[digest.Digest]*classicStep
	head    int               // the step that is being told
	last    map[string]string // by stage, and by what FROM names: the id of what was told last
	image   string            // the id of the result, once there is one
}

type classicStep struct {
	name      string
	full      string                 // with its place in front
	under     map[digest.Digest]bool // vertices that are not completed
	begun     bool
	completed bool
	cached    bool
	failed    bool
	process   string
	result    digest.Digest
	told      bool // its first line
	ran       bool // that it runs
	over      bool // all but its last line
	output    []byte
}

// update takes what happened.
func (c *classic) update(st build.Status) {
	if c.by == nil {
		c.by, c.last = map[digest.Digest]*classicStep{}, map[string]string{}
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

// advance tells what can be told in order. The last step waits for the image that it makes. end: nothing else will happen.
func (c *classic) advance(end bool) {
	if c.plan == nil {
		for c.head < len(c.steps) {
			if !c.tell(c.steps[c.head], c.head+1, len(c.steps)) && !end || c.head == len(c.steps)-1 && !end {
				return
			}
			c.close(c.steps[c.head], "", c.head == len(c.steps)-1)
			c.head++
		}
		return
	}
	for c.head < len(c.plan) && (len(c.steps) > 0 || end) {
		one := c.plan[c.head]
		n, of := c.plan.numbers(c.head)
		last := c.head == len(c.plan)-1
		switch {
		case one.step != nil:
			if one.text != "" {
				one.step.name = one.text
			}
			if !c.tell(one.step, n, of) || last && !end {
				return
			}
			c.close(one.step, one.stage, last)
			if one.from != "" {
				c.last[one.from] = c.last[one.stage]
			}
		case one.text != "" && !c.plan.left(one.stage): // no vertex of its own: none at all, or that of an equal step
			if last && !end {
				return
			}
			c.say(fmt.Sprintf("Step %d/%d : %s\n", n, of, one.text))
			if one.from != "" {
				c.last[one.stage] = c.last[one.from]
			}
			if one.stage != "" {
				c.close(nil, one.stage, last)
			}
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
		step = c.step(v.Name)
		c.by[v.Digest] = step
		step.under[v.Digest] = true
	}
	step.begun = step.begun || v.Started != nil
	if v.Completed != nil {
		delete(step.under, v.Digest)
		step.cached = v.Cached // what ends last is what the instruction is about
	}
	step.completed = len(step.under) == 0
	step.failed = step.failed || v.Error != ""
	if v.Process != "" {
		step.process = strings.TrimPrefix(v.Process, "step-")
	}
	if v.Result != "" {
		step.result = v.Result
	}
}

// step finds the step of a vertex. An ADD of addresses has one vertex for each that is fetched, and one that puts them into the tree, all of the same name.
func (c *classic) step(full string) *classicStep {
	if i := slices.IndexFunc(c.steps, func(s *classicStep) bool { return s.full == full }); i >= 0 {
		return c.steps[i]
	}
	_, name, _ := strings.Cut(full, "] ")
	step := &classicStep{name: name, full: full, under: map[digest.Digest]bool{}}
	c.steps = append(c.steps, step)
	c.plan = c.plan.join(step)
	return step
}

// tell says what is new of a step, and whether that was all but its last line. Nothing comes after one that failed.
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
	if step.process != "" && !step.ran {
		step.ran = true
		c.say(" ---> Running in " + short(step.process) + "\n")
	}
	if len(step.output) > 0 {
		c.say(string(step.output))
		step.output = nil
	}
	if step.completed && !step.over {
		step.over = true
		if step.cached && !strings.HasPrefix(step.name, "FROM ") { // an image that is there is no step saved
			c.say(" ---> Using cache\n")
		}
		if step.ran && (!step.failed && !c.kept || step.failed && c.failedToo) {
			c.say("Removing intermediate container " + short(step.process) + "\n")
		}
	}
	return step.completed && !step.failed
}

// close says what a step, or an instruction that has none, gave.
func (c *classic) close(step *classicStep, stage string, last bool) {
	if step != nil {
		if !step.completed {
			return
		}
		c.last[stage] = short(step.result.String())
		if _, name, _ := strings.Cut(step.full, "] "); strings.HasPrefix(name, "FROM ") {
			if id := c.imageOf(strings.TrimPrefix(name, "FROM ")); id != "" {
				c.last[stage] = short(id)
			}
		}
	}
	id := c.last[stage]
	if last {
		id = short(c.image)
	}
	c.say(" ---> " + id + "\n")
}

// finish tells what waited for a step that never ran, unless the build failed there, and the image.
func (c *classic) finish(image string, err error) {
	if c.image = image; c.last == nil {
		c.last = map[string]string{}
	}
	c.advance(err == nil)
}

func (c *classic) say(text string) {
	if !c.quiet {
		c.out.say(text)
	}
}

func jsonError(code int, text string) *jsonstream.Error {
	return &jsonstream.Error{Code: code, Message: text}
}
