package cli

import (
	"bytes"
	"fmt"
	"strings"
)

// Pages are the reference in Markdown, by file name: corten.md is the index, corten-network-create.md a verb's page.
// Their text is that of the help.
func Pages() map[string]string {
	root := grammar()
	pages := map[string]string{}
	var index bytes.Buffer
	index.WriteString("# corten\n\nThe command line, a page per command. All of it is generated from the help texts.\n\n```\n")
	rootHelp(&index, root)
	index.WriteString("```\n\n## Pages\n\n")
	var walk func(path string, n *node)
	walk = func(path string, n *node) {
		for _, s := range n.sub {
			if s.group == "" {
				continue
			}
			full := path + " " + s.name
			file := strings.ReplaceAll(full, " ", "-") + ".md"
			fmt.Fprintf(&index, "- [%s](%s): %s\n", full, file, s.line())
			if s.make == nil {
				var b bytes.Buffer
				groupHelp(&b, full, s)
				pages[file] = "# " + full + "\n\n```\n" + b.String() + "```\n"
				walk(full, s)
				continue
			}
			pages[file] = page(full, s)
		}
	}
	walk("corten", root)
	pages["corten.md"] = index.String()
	return pages
}

func page(path string, n *node) string {
	v := n.make()
	fs := newFlags(n.name)
	if v.flags != nil {
		v.flags(fs)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "# %s\n\n%s.\n\n```\n%s\n```\n", path, v.short, v.usageLine(path))
	if v.long != "" {
		fmt.Fprintf(&b, "\n%s\n", v.long)
	}
	if al := aliasesOf(path); len(al) > 1 {
		fmt.Fprintf(&b, "\nAlso: `%s`\n", strings.Join(al, "`, `"))
	}
	if fs.HasAvailableFlags() {
		fmt.Fprintf(&b, "\n## Options\n\n```\n%s```\n", flagUsages(fs))
	}
	if v.example != "" {
		fmt.Fprintf(&b, "\n## Examples\n\n```\n%s\n```\n", v.example)
	}
	return b.String()
}
