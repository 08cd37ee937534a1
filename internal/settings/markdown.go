package settings

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/pflag"
)

// Markdown is the reference page of the settings, made of the same words as the help.
func Markdown() string {
	s := Default()
	keys := map[string]string{}
	for key, flag := range flagKeys {
		keys[flag] = key
	}
	onlyFlags := map[string]bool{"config-file": true, "validate": true, "version": true}
	var b strings.Builder
	b.WriteString("# cortend\n\nThe engine of Corten.\n\n```\ncortend [flags]\ncortend runtime COMMAND\ncortend registry COMMAND\n```\n\n" +
		"Flags are dockerd's where it has the same setting. The keys may stand in `/etc/corten/daemon.json` instead; a setting that is given in both places is refused. " +
		"`cortend runtime` is the command line of the OCI runtime: see [runtime.md](runtime.md); `cortend registry` is a registry for images: see [registry.md](registry.md).\n\n| flag | key in the file | default | meaning |\n|---|---|---|---|\n")
	s.flags(io.Discard).VisitAll(func(f *pflag.Flag) {
		name := "`--" + f.Name + "`"
		if f.Shorthand != "" {
			name = "`-" + f.Shorthand + "`, " + name
		}
		key := "`" + f.Name + "`"
		if k, ok := keys[f.Name]; ok {
			key = "`" + k + "`"
		}
		if onlyFlags[f.Name] {
			key = ""
		}
		if slices.Contains(proxyFlags(), f.Name) {
			key = "`proxies`: `" + f.Name + "`"
		}
		value := f.DefValue
		if value == "[]" || value == "" || value == "false" {
			value = ""
		} else {
			value = "`" + value + "`"
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", name, key, value, strings.ReplaceAll(f.Usage, "|", `\|`))
	})
	b.WriteString("\nIn the file only: `registries`, the rules of mirrors and other places of registries: see [registries.md](registries.md).\n")
	b.WriteString(imageText)
	b.WriteString(builderText)
	b.WriteString("\nWithout `--host` the engine listens on `corten.sock` in its exec root. Several engines with different `--data-root`, `--exec-root`, `--bridge`, `--bip` and `--nft-table` run side by side on one host.\n\nAs a service of systemd: [cortend.service](cortend.service). It ends the engine alone; containers and their monitors outlive a stop or restart.\n")
	return b.String()
}
