package cli

import (
	"context"
	"fmt"
	"net/url"
	"sort"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/volume"
	"github.com/spf13/pflag"
)

// The scripts ask `corten __complete WORD...`, the last word being the one under the cursor. The answer is a
// candidate a line; the line ":files" asks the shell for file names.
const (
	bashScript = `# bash completion for corten; load with: source <(corten completion bash)
_corten() {
    local i line have rest="$COMP_LINE" words=()
    COMPREPLY=()
    # bash breaks words at : and =, so that busybox:latest is three of them, and puts what it is given in the place of the last.
    for ((i = 0; i <= COMP_CWORD; i++)); do
        if [[ $i = 0 || $rest = [[:space:]]* ]]; then
            words+=("${COMP_WORDS[i]}")
        else
            words[${#words[@]}-1]+="${COMP_WORDS[i]}"
        fi
        rest="${rest#*"${COMP_WORDS[i]}"}"
    done
    have="${words[${#words[@]}-1]}"
    if [[ $have = *[:=]* ]]; then
        have="${have%"${have##*[:=]}"}"
    else
        have=
    fi
    while IFS= read -r line; do
        if [ "$line" = ":files" ]; then
            compopt -o default 2>/dev/null
        else
            COMPREPLY+=("${line#"$have"}")
        fi
    done < <(corten __complete "${words[@]:1}" 2>/dev/null)
}
complete -F _corten corten
`

	zshScript = `#compdef corten
# zsh completion for corten; load with: source <(corten completion zsh)
_corten() {
    local -a found lines
    lines=("${(@f)$(corten __complete "${(@)words[2,$CURRENT]}" 2>/dev/null)}")
    found=(${lines:#:files})
    (( $#found )) && compadd -Q -a found
    [[ ${lines[(r):files]} == ":files" ]] && _files
}
compdef _corten corten
`

	fishScript = `# fish completion for corten; load with: corten completion fish | source
function __corten_complete
    set -l words (commandline -opc) (commandline -ct)
    for line in (corten __complete $words[2..-1] 2>/dev/null)
        if test "$line" = ":files"
            __fish_complete_path (commandline -ct)
        else
            echo $line
        end
    end
end
complete -c corten -f -a '(__corten_complete)'
`
)

func newCompletion(shell string) *verb {
	how, script := "source <(corten completion "+shell+")", bashScript
	switch shell {
	case "zsh":
		script = zshScript
	case "fish":
		how, script = "corten completion fish | source", fishScript
	}
	return &verb{
		short: "Print the completion script for " + shell, long: "Load it with: " + how, example: how,
		run: func(_ context.Context, a *app, args []string) error {
			_, err := fmt.Fprint(a.Out, script)
			return err
		},
	}
}

func newComplete() *verb {
	return &verb{rawArgs: true, max: -1, short: "Answer a completion script", run: func(ctx context.Context, a *app, args []string) error {
		if len(args) == 0 {
			args = []string{""}
		}
		a.passive = true
		ctx, cancel := context.WithTimeout(ctx, patience) // a shell waits for us
		defer cancel()
		for _, c := range a.candidates(ctx, args) {
			fmt.Fprintln(a.Out, c)
		}
		return nil
	}}
}

// patience is how long an engine may take to answer a completion.
const patience = 5 * time.Second

// candidates are the words that may stand where the last of words stands.
func (a *app) candidates(ctx context.Context, words []string) []string {
	cur := words[len(words)-1]
	n, rest := grammar(), words[:len(words)-1]
	global := newFlags("corten")
	a.global.register(global)
	global.SetInterspersed(false)
	if err := global.Parse(rest); err != nil {
		return nil
	}
	if len(a.global.hosts) == 1 {
		a.global.Host = a.global.hosts[0]
	}
	rest = global.Args()
	fs := global
	for len(rest) > 0 && n.sub != nil {
		next := n.find(rest[0])
		if next == nil {
			return nil
		}
		n, rest = next, rest[1:]
		fs = nil
	}
	if n.make == nil {
		if strings.HasPrefix(cur, "-") {
			return flagNames(fs, cur)
		}
		var out []string
		for _, s := range n.sub {
			if (s.group != "" || len(n.name) > 0 && n.name != "corten") && strings.HasPrefix(s.name, cur) {
				out = append(out, s.name)
			}
		}
		return out
	}
	v := n.make()
	fs = newFlags(n.name)
	if v.flags != nil {
		v.flags(fs)
	}
	if strings.HasPrefix(cur, "-") {
		flag, val, ok := strings.Cut(cur, "=")
		if !ok || !wantsValue(fs, flag) {
			return flagNames(fs, cur)
		}
		var out []string
		for _, c := range a.flagValues(ctx, strings.TrimLeft(flag, "-"), val) {
			if c != ":files" {
				c = flag + "=" + c
			}
			out = append(out, c)
		}
		return out
	}
	if len(rest) > 0 && wantsValue(fs, rest[len(rest)-1]) {
		return a.flagValues(ctx, strings.TrimLeft(rest[len(rest)-1], "-"), cur)
	}
	fs.SetInterspersed(!v.stopAtArg)
	if err := fs.Parse(rest); err != nil {
		return nil
	}
	if v.max >= 0 && fs.NArg() >= v.max || v.stopAtArg && fs.NArg() > 0 {
		return []string{":files"}
	}
	kind := v.names
	if kind == networks && fs.NArg() == 1 && v.max == 2 {
		kind = containers // network connect NETWORK CONTAINER
	}
	return a.nouns(ctx, kind, cur)
}

func flagNames(fs *pflag.FlagSet, cur string) []string {
	out := []string{}
	if fs != nil {
		fs.VisitAll(func(f *pflag.Flag) {
			if name := "--" + f.Name; !f.Hidden && strings.HasPrefix(name, cur) {
				out = append(out, name)
			}
		})
	}
	if strings.HasPrefix("--help", cur) {
		out = append(out, "--help")
	}
	return out
}

// wantsValue tells whether word is a flag whose value comes next.
func wantsValue(fs *pflag.FlagSet, word string) bool {
	if strings.Contains(word, "=") {
		return false
	}
	var f *pflag.Flag
	if name, ok := strings.CutPrefix(word, "--"); ok {
		f = fs.Lookup(name)
	} else if short, ok := strings.CutPrefix(word, "-"); ok && short != "" {
		f = fs.ShorthandLookup(short[len(short)-1:])
	}
	return f != nil && f.NoOptDefVal == ""
}

func (a *app) flagValues(ctx context.Context, flag, cur string) []string {
	fixed := map[string][]string{
		"restart": {"no", "always", "unless-stopped", "on-failure", "on-unhealthy"}, "pull": {"always", "missing", "never"},
		"type": {"container", "image", "network", "volume"}, "format": {"json", "table"}, "ipc": {"none", "private", "shareable", "host"},
		"pid": {"host"}, "uts": {"host"}, "userns": {"host"}, "cgroupns": {"host", "private"}, "attach": {"stdin", "stdout", "stderr"},
		"a": {"stdin", "stdout", "stderr"}, "log-level": {"debug", "info", "warn", "error", "fatal"},
		"signal": {"HUP", "INT", "KILL", "QUIT", "TERM", "USR1", "USR2"}, "s": {"HUP", "INT", "KILL", "QUIT", "TERM", "USR1", "USR2"},
	}
	if out := a.ofContainer(ctx, cur); out != nil && (flag == "ipc" || flag == "pid") {
		return out
	}
	if vals, ok := fixed[flag]; ok {
		return withPrefix(vals, cur)
	}
	switch flag {
	case "network", "net":
		if out := a.ofContainer(ctx, cur); out != nil {
			return out
		}
		return a.nouns(ctx, networks, cur)
	case "volumes-from", "link":
		return a.nouns(ctx, containers, cur)
	case "volume", "v":
		return append(a.nouns(ctx, volumes, cur), ":files")
	case "log-driver":
		return withPrefix(a.logDrivers(ctx), cur)
	}
	return []string{":files"}
}

// ofContainer completes container:NAME; nil when cur begins otherwise.
func (a *app) ofContainer(ctx context.Context, cur string) []string {
	name, ok := strings.CutPrefix(cur, "container:")
	if !ok {
		return nil
	}
	out := []string{}
	for _, ctr := range a.nouns(ctx, runningContainers, name) {
		out = append(out, "container:"+ctr)
	}
	return out
}

func (a *app) logDrivers(ctx context.Context) []string {
	api, err := a.engine()
	if err != nil {
		return nil
	}
	var info struct{ Plugins struct{ Log []string } }
	if err := api.Get(ctx, "/info", nil, &info); err != nil {
		return nil
	}
	return info.Plugins.Log
}

func withPrefix(vals []string, cur string) []string {
	var out []string
	for _, v := range vals {
		if strings.HasPrefix(v, cur) {
			out = append(out, v)
		}
	}
	sort.Strings(out)
	return out
}

// nouns asks the engine for names. Without an engine there are none: completion never starts one.
func (a *app) nouns(ctx context.Context, kind nounKind, cur string) []string {
	if kind == noNames {
		return []string{":files"}
	}
	api, err := a.engine()
	if err != nil {
		return nil
	}
	var out []string
	get := func(path string, q url.Values, into any) bool { return api.Get(ctx, path, q, into) == nil }
	switch kind {
	case containers, runningContainers:
		var list []container.Summary
		if get("/containers/json", query("all", flag1(kind == containers)), &list) {
			for _, c := range list {
				for _, n := range c.Names {
					out = append(out, strings.TrimPrefix(n, "/"))
				}
			}
		}
	case images:
		var list []image.Summary
		if get("/images/json", nil, &list) {
			for _, i := range list {
				for _, t := range i.RepoTags {
					out = append(out, t, strings.TrimSuffix(t, ":latest"))
				}
			}
		}
	case volumes:
		var list struct{ Volumes []volume.Volume }
		if get("/volumes", nil, &list) {
			for _, v := range list.Volumes {
				out = append(out, v.Name)
			}
		}
	case networks:
		var list []network.Summary
		if get("/networks", nil, &list) {
			for _, n := range list {
				out = append(out, n.Name)
			}
		}
	}
	found := withPrefix(out, cur)
	uniq := found[:0]
	for i, s := range found {
		if i == 0 || s != found[i-1] {
			uniq = append(uniq, s)
		}
	}
	return uniq
}
