package cli

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/pflag"
)

// The headings of the root's help, in their order.
const (
	groupCommon = "Common commands"
	groupManage = "Nouns"
	groupOther  = "Commands"
)

func rootHelp(w io.Writer, root *node) {
	fmt.Fprint(w, "Usage:  corten [OPTIONS] COMMAND\n\nBuild, ship and run containers, with docker's words\n")
	for _, g := range []string{groupCommon, groupManage, groupOther} {
		fmt.Fprintf(w, "\n%s:\n", g)
		for _, n := range root.sub {
			if n.group == g {
				fmt.Fprintf(w, "  %-11s %s\n", n.name, n.line())
			}
		}
	}
	fs := newFlags("corten")
	(&globalFlags{}).register(fs)
	fmt.Fprintf(w, "\nGlobal options:\n%s\nRun 'corten COMMAND --help' for more about a command.\n", flagUsages(fs))
}

func newHelp() *verb {
	return &verb{
		use: "[COMMAND]", max: -1, short: "Explain a command", long: "Shows the same text as --help after the command.", example: "corten help run",
		run: func(ctx context.Context, a *app, args []string) error {
			root := grammar()
			if len(args) == 0 {
				rootHelp(a.Out, root)
				return nil
			}
			a.path = "corten"
			if code := a.dispatch(ctx, root, append(args, "--help")); code != 0 {
				return &exitError{code: code}
			}
			return nil
		},
	}
}

// line is what a listing says about the node.
func (n *node) line() string {
	if n.short == "" && n.make != nil {
		return n.make().short
	}
	return n.short
}

func groupHelp(w io.Writer, path string, n *node) {
	fmt.Fprintf(w, "Usage:  %s COMMAND\n\n%s\n\nCommands:\n", path, n.short)
	for _, s := range n.sub {
		fmt.Fprintf(w, "  %-11s %s\n", s.name, s.line())
	}
	fmt.Fprintf(w, "\nRun '%s COMMAND --help' for more about a command.\n", path)
}

func verbHelp(w io.Writer, path string, v *verb, fs *pflag.FlagSet) {
	fmt.Fprintf(w, "Usage:  %s\n\n%s\n", v.usageLine(path), v.short)
	if v.long != "" {
		fmt.Fprintf(w, "\n%s\n", v.long)
	}
	if al := aliasesOf(path); len(al) > 1 {
		fmt.Fprintf(w, "\nAlso: %s\n", strings.Join(al, ", "))
	}
	if fs.HasAvailableFlags() {
		fmt.Fprintf(w, "\nOptions:\n%s", flagUsages(fs))
	}
	if v.example != "" {
		fmt.Fprintf(w, "\nExamples:\n  %s\n", strings.ReplaceAll(v.example, "\n", "\n  "))
	}
}

// flagUsages lists flags with docker's type names.
func flagUsages(fs *pflag.FlagSet) string {
	var left, right []string
	width := 0
	fs.VisitAll(func(f *pflag.Flag) {
		if f.Hidden {
			return
		}
		s := "      --" + f.Name
		if f.Shorthand != "" {
			s = "  -" + f.Shorthand + ", --" + f.Name
		}
		if t := typeName(f); t != "" {
			s += " " + t
		}
		text := f.Usage
		if f.DefValue != "" && f.DefValue != "false" && f.DefValue != "0" && f.DefValue != "[]" && f.DefValue != "0s" {
			text += " (default " + f.DefValue + ")"
		}
		left, right = append(left, s), append(right, text)
		width = max(width, len(s))
	})
	var b strings.Builder
	for i := range left {
		fmt.Fprintf(&b, "%-*s   %s\n", width, left[i], right[i])
	}
	return b.String()
}

func typeName(f *pflag.Flag) string {
	switch t := f.Value.Type(); t {
	case "bool":
		return ""
	case "stringArray", "stringSlice":
		return "list"
	case "int64", "uint16", "uint64":
		return "int"
	default:
		return t
	}
}

// aliasesOf lists all spellings of the command at path.
func aliasesOf(path string) []string {
	words := strings.Fields(path)[1:]
	root := grammar()
	n := root
	for _, w := range words {
		if n = n.find(w); n == nil {
			return nil
		}
	}
	if n.make == nil {
		return nil
	}
	want := fmt.Sprintf("%p", n.make)
	var out []string
	var walk func(prefix string, n *node)
	walk = func(prefix string, n *node) {
		for _, s := range n.sub {
			if s.make != nil && fmt.Sprintf("%p", s.make) == want {
				for _, name := range append([]string{s.name}, s.aliases...) {
					out = append(out, prefix+" "+name)
				}
			}
			walk(prefix+" "+s.name, s)
		}
	}
	walk("corten", root)
	return out
}
