package cli

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/image"

	"corten.dev/corten/internal/cli/show"
	"corten.dev/corten/internal/cli/term"
)

// The list of images as a tree, as docker 28 draws it:
//
//	                                       Info ->  U In Use
//
//	IMAGE                   ID             DISK USAGE   CONTENT SIZE   EXTRA
//	app:1                                                                       names; the last one carries the figures
//	app:latest              0d3b1f0f5b9c        8.2MB            1MB   U
//	├─ linux/amd64          5c0e1d2a7f3b        4.1MB            1MB   U        what the names lead to
//	└─ linux/arm/v7         9b7d6a5c4e3f           0B             0B            dim on a terminal: not here
//
// Where the screen is narrow, names are shortened; where it is very narrow, columns go, the last one first.

// Widths of the tree, in characters.
const (
	treeGap      = 3
	treeMinNames = 12 // a column goes before the names get less than that
	treeNames    = 20 // names alone never get less than that
	treeScreen   = 80 // of what is no terminal
)

// The colours that docker gives it.
const (
	treeHead   = "\x1b[39m\x1b[1m"
	treeName   = "\x1b[34m\x1b[1m"
	treeCell   = "\x1b[39m"
	treeDim    = "\x1b[39m\x1b[2m"
	treeChip   = "\x1b[38;5;0m\x1b[48;5;14m"
	treeWarn   = "\x1b[93m"
	treeReset  = "\x1b[0m"
	treeNotice = "WARNING: This is an experimental feature. The output may change and shouldn't be depended on."
)

// treeLine is a line with figures.
type treeLine struct {
	names             []string // of an image, or the branch and the platform
	id, disk, content string
	used, dim, branch bool
}

type imageTree struct {
	w      io.Writer
	colour bool
	screen int
	names  int // width of the first column
	shown  int // columns beside it
}

// tree asks for manifests and draws them.
func (o *imagesOptions) tree(ctx context.Context, a *app) error {
	for _, not := range []struct {
		set  bool
		flag string
	}{{o.quiet, "--quiet"}, {o.noTrunc, "--no-trunc"}, {o.digests, "--show-digest"}, {o.format != "", "--format"}} {
		if not.set {
			return invalid("%s is not yet supported with --tree", not.flag)
		}
	}
	api, err := a.engine()
	if err != nil {
		return err
	}
	var list []image.Summary
	if err := api.Get(ctx, "/images/json", o.filter.into(url.Values{"all": {flag1(o.all)}, "manifests": {"1"}}), &list); err != nil {
		return err
	}
	t := imageTree{w: a.Out, screen: treeScreen}
	if fd, ok := terminalFd(a.Out); ok {
		t.colour = colourful()
		if size, err := term.GetSize(fd); err == nil && size.Width > 0 { // else a terminal that does not know its size
			t.screen = int(size.Width)
		}
	}
	slices.SortStableFunc(list, func(a, b image.Summary) int { return cmp.Compare(b.Created, a.Created) })
	var images [][]treeLine
	roomy := false
	for i := range list {
		if !o.all && len(list[i].RepoTags)+len(list[i].RepoDigests) == 0 {
			continue
		}
		lines := treeLines(&list[i])
		roomy = roomy || len(lines) > 1
		images = append(images, lines)
	}
	t.draw(images, roomy)
	return nil
}

// treeLines gives an image's lines: its own, and one for each image that its names lead to.
func treeLines(s *image.Summary) []treeLine {
	size := func(n int64) string { return units.HumanSizeWithPrecision(float64(n), 3) }
	top := treeLine{names: slices.Sorted(slices.Values(s.RepoTags)), id: show.ShortID(s.ID), disk: size(s.Size), used: s.Containers > 0}
	if len(top.names) == 0 {
		top.names = []string{"<untagged>"}
	}
	lines := []treeLine{top}
	var content int64
	for _, m := range s.Manifests {
		if m.Kind != image.ManifestKindImage || m.ImageData == nil {
			continue
		}
		p := m.ImageData.Platform
		name := p.OS + "/" + p.Architecture
		if p.Variant != "" {
			name += "/" + p.Variant
		}
		content += m.Size.Content
		used := len(m.ImageData.Containers) > 0
		lines[0].used = lines[0].used || used
		lines = append(lines, treeLine{names: []string{"├─ " + name}, id: show.ShortID(m.ID), disk: size(m.Size.Total), content: size(m.Size.Content), used: used, dim: !m.Available, branch: true})
	}
	lines[0].content = size(content)
	if last := len(lines) - 1; last > 0 {
		lines[last].names[0] = "└─ " + strings.TrimPrefix(lines[last].names[0], "├─ ")
	}
	return lines
}

// treeColumns are the columns beside the names.
func treeColumns() []struct {
	head  string
	width int
} {
	return []struct {
		head  string
		width int
	}{{"ID", 12}, {"DISK USAGE", 10}, {"CONTENT SIZE", 12}, {"EXTRA", 5}}
}

// fit decides how many columns there is room for, and how wide the names may be.
func (t *imageTree) fit(images [][]treeLine) {
	longest := len("IMAGE")
	for _, lines := range images {
		for _, l := range lines {
			for _, n := range l.names {
				longest = max(longest, utf8.RuneCountInString(n))
			}
		}
	}
	columns := treeColumns()
	for t.shown = len(columns); ; t.shown-- {
		left := t.screen
		for _, c := range columns[:t.shown] {
			left -= treeGap + c.width
		}
		if left >= treeMinNames || t.shown == 0 {
			if t.shown == 0 {
				left = max(left, treeNames)
			}
			t.names = min(longest, left)
			return
		}
	}
}

func (t *imageTree) draw(images [][]treeLine, roomy bool) {
	t.fit(images)
	fmt.Fprintln(t.w, t.paint(treeWarn, treeNotice))
	t.legend()
	head := t.paint(treeHead, "IMAGE")
	pad := t.names - len("IMAGE")
	for _, c := range treeColumns()[:t.shown] {
		head += strings.Repeat(" ", pad+treeGap) + t.paint(treeHead, c.head)
		pad = c.width - len(c.head)
	}
	fmt.Fprintln(t.w, head)
	for _, lines := range images {
		for _, l := range lines {
			t.line(l)
		}
		if roomy {
			fmt.Fprintln(t.w)
		}
	}
}

// legend says at the right what the marks mean.
func (t *imageTree) legend() {
	plain, text := "Info ->  U In Use ", "Info ->  U In Use "
	if t.colour {
		plain = "i Info →   U  In Use "
		text = "\x1b[1m\x1b[106m\x1b[30mi\x1b[0m\x1b[0m \x1b[96mInfo → \x1b[0m\x1b[0m " + treeChip + " U " + treeReset + " In Use "
	}
	fmt.Fprintf(t.w, "%s%s\n\n", strings.Repeat(" ", max(t.screen-utf8.RuneCountInString(plain), 0)), text)
}

func (t *imageTree) line(l treeLine) {
	colour := treeCell
	switch {
	case l.dim || l.names[0] == "<untagged>":
		colour = treeDim
	case !l.branch:
		colour = treeName
	}
	last := len(l.names) - 1
	for _, n := range l.names[:last] {
		fmt.Fprintln(t.w, t.paint(colour, show.Ellipsis(n, t.names)))
	}
	name := show.Ellipsis(l.names[last], t.names)
	text := t.paint(colour, name)
	pad := t.names - utf8.RuneCountInString(name)
	if colour == treeName || !l.dim {
		colour = treeCell
	}
	columns := treeColumns()
	for i, cell := range []string{l.id, l.disk, l.content} {
		if i >= t.shown {
			break
		}
		before := pad + treeGap
		if i > 0 { // figures stand at the right
			before = treeGap + columns[i].width - len(cell)
		}
		text += strings.Repeat(" ", before) + t.paint(colour, cell)
	}
	if t.shown == len(columns) {
		text += strings.Repeat(" ", treeGap) + t.mark(l.used)
	}
	fmt.Fprintln(t.w, text)
}

// mark is five characters wide.
func (t *imageTree) mark(used bool) string {
	switch {
	case !used:
		return "     "
	case t.colour:
		return treeChip + " U " + treeReset + "  "
	}
	return "U    "
}

func (t *imageTree) paint(colour, text string) string {
	if !t.colour {
		return text
	}
	return colour + text + treeReset
}
