package cli

import (
	"context"
	"fmt"
)

// buildLater is what to do until images can be built.
const buildLater = "building images is not part of this version; make them with corten commit or corten import"

// later is a verb that people will type, but that cannot work yet.
func later(name, why string) func() *verb {
	return func() *verb {
		return &verb{
			use: "[OPTIONS] [ARG...]", max: -1, rawArgs: true, short: "Not part of this version", long: "Says what to do instead: " + why + ".",
			run: func(_ context.Context, a *app, args []string) error {
				if len(args) == 1 && (args[0] == "--help" || args[0] == "-h") {
					fmt.Fprintf(a.Out, "corten %s: %s\n", name, why)
					return nil
				}
				return &exitError{code: 1, text: fmt.Sprintf("corten %s: %s", name, why)}
			},
		}
	}
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
