package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/pflag"
)

// verb is one command, built only when it is needed.
type verb struct {
	use     string // after the command's path: "[OPTIONS] CONTAINER [CONTAINER...]"
	short   string
	long    string // for the help and the page in docs; plain paragraphs
	example string
	flags   func(*pflag.FlagSet)
	min     int
	max     int      // -1: no limit
	names   nounKind // what completion offers for arguments
	run     func(ctx context.Context, a *app, args []string) error

	stopAtArg bool // flags end at the first argument: the rest is a command for somebody else
	rawArgs   bool // no flags at all, arguments go through untouched

	set *pflag.FlagSet // the parsed flags, while run works
}

// nounKind is what an argument names.
type nounKind int

const (
	noNames nounKind = iota
	containers
	runningContainers
	images
	volumes
	networks
)

func (v *verb) usageLine(path string) string { return strings.TrimSpace(path + " " + v.use) }

// checkArgs complains about the number of arguments in docker's words.
func (v *verb) checkArgs(path string, args []string) error {
	n := len(args)
	if n >= v.min && (v.max < 0 || n <= v.max) {
		return nil
	}
	see := "See"
	var want string
	switch {
	case v.min == 0 && v.max == 0:
		want, see = "accepts no arguments", "Run"
	case v.min == v.max:
		want, see = fmt.Sprintf("requires %d %s", v.min, plural(v.min, "argument")), "Run"
	case v.max < 0:
		want = fmt.Sprintf("requires at least %d %s", v.min, plural(v.min, "argument"))
	case v.min == 0:
		want = fmt.Sprintf("requires at most %d %s", v.max, plural(v.max, "argument"))
	default:
		want = fmt.Sprintf("requires at least %d and at most %d %s", v.min, v.max, plural(v.max, "argument"))
	}
	return &usageError{text: fmt.Sprintf("corten: '%s' %s", path, want), code: 1, see: see}
}

func plural(n int, word string) string {
	if n == 1 {
		return word
	}
	return word + "s"
}

// changed tells whether the user gave the flag.
func (v *verb) changed(name string) bool { return v.set != nil && v.set.Changed(name) }

// newFlags makes a flag set that prints nothing by itself.
func newFlags(name string) *pflag.FlagSet {
	fs := pflag.NewFlagSet(name, pflag.ContinueOnError)
	fs.Usage = func() {}
	return fs
}

// node is a command or a group of commands.
type node struct {
	name    string
	short   string
	aliases []string
	make    func() *verb
	sub     []*node
	group   string // heading in the root's help; "" hides
}

func (n *node) find(word string) *node {
	for _, s := range n.sub {
		if s.name == word {
			return s
		}
		for _, al := range s.aliases {
			if al == word {
				return s
			}
		}
	}
	return nil
}

// filters is the --filter flag: name=value pairs, sent as JSON.
type filters map[string]map[string]bool

func (f filters) String() string { return "" }
func (f filters) Type() string   { return "filter" }

// Set adds one name=value.
func (f filters) Set(s string) error {
	name, value, ok := strings.Cut(s, "=")
	if s == "" {
		return nil
	}
	if !ok {
		return fmt.Errorf("bad format of filter (expected name=value)")
	}
	name = strings.ToLower(strings.TrimSpace(name))
	if f[name] == nil {
		f[name] = map[string]bool{}
	}
	f[name][strings.TrimSpace(value)] = true
	return nil
}
