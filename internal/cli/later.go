package cli

import (
	"context"
)

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
