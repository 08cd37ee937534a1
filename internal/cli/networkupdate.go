package cli

import (
	"context"

	"github.com/spf13/pflag"
)

// newNetworkUpdate changes what can be changed of a network that is in use. Docker has no such verb.
func newNetworkUpdate() *verb {
	var limits netLimitFlags
	var undo, dryRun bool
	v := &verb{
		use: "[OPTIONS] NETWORK [NETWORK...]", min: 1, max: -1, short: "Change where a network's containers may connect to, and how fast", names: networks,
		long: "Changes the egress list and the rates of networks, for the containers on them too while they run. Connections that the new list does not have end. " +
			"`--egress all` takes the list away, `--net-egress-bps 0` and `--net-ingress-bps 0` a rate.",
		example: "corten network update --egress 10.0.0.0/8,example.org:443 backend\ncorten network update --net-egress-bps 0 --dry-run backend\ncorten network update --undo backend",
		flags: func(f *pflag.FlagSet) {
			limits.registerFor(f, "its containers")
			f.BoolVar(&undo, "undo", false, "go back to what was before the last change")
			f.BoolVar(&dryRun, "dry-run", false, "tell what would change, and do nothing")
		},
	}
	v.run = func(ctx context.Context, a *app, args []string) error {
		set := v.set
		if err := limits.check(set); err != nil {
			return err
		}
		options := limits.changes(set)
		switch {
		case undo && len(options) > 0:
			return invalid("--undo goes back to what was, and takes no other changes")
		case !undo && len(options) == 0:
			return invalid("say what to change: --egress, --net-egress-bps, --net-ingress-bps, or --undo")
		}
		api, err := a.engine()
		if err != nil {
			return err
		}
		body := map[string]any{"Options": options, "Undo": undo, "DryRun": dryRun}
		return a.each(args, func(name string) error {
			var done editedBody
			if err := api.Post(ctx, "/networks/"+esc(name)+"/update", nil, body, &done); err != nil {
				return err
			}
			a.tellEdit(name, done, dryRun)
			return nil
		})
	}
	return v
}
