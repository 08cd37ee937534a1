package cli

import (
	"context"
	"fmt"
	"net"
	"sort"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/spf13/pflag"

	"corten.dev/corten/internal/cli/parse"
)

func newPort() *verb {
	return &verb{
		use: "CONTAINER [PRIVATE_PORT[/PROTO]]", min: 1, max: 2, short: "List a container's published ports", names: runningContainers,
		long: "Lists where each port of the container is published, or only for one of them.", example: "corten port web\ncorten port web 80/tcp",
		run: func(ctx context.Context, a *app, args []string) error {
			api, err := a.engine()
			if err != nil {
				return err
			}
			var ctr struct {
				NetworkSettings struct{ Ports network.PortMap }
			}
			if err := api.Get(ctx, "/containers/"+esc(args[0])+"/json", nil, &ctr); err != nil {
				return err
			}
			ports := ctr.NetworkSettings.Ports
			if len(args) == 2 {
				return onePort(a, ports, args[0], args[1])
			}
			var lines []string
			for port, bindings := range ports {
				for _, b := range bindings {
					lines = append(lines, port.String()+" -> "+bindingText(b))
				}
			}
			sort.Slice(lines, func(i, j int) bool { return naturalLess(lines[i], lines[j]) })
			for _, l := range lines {
				fmt.Fprintln(a.Out, l)
			}
			return nil
		},
	}
}

func onePort(a *app, ports network.PortMap, name, want string) error {
	port, err := network.ParsePort(want)
	if err != nil {
		return invalid("Error: invalid port %q: %w", want, err)
	}
	bindings, ok := ports[port]
	if !ok || bindings == nil {
		return &exitError{code: 1, text: fmt.Sprintf("Error: No public port '%s' published for %s", want, name)}
	}
	for _, b := range bindings {
		fmt.Fprintln(a.Out, bindingText(b))
	}
	return nil
}

func bindingText(b network.PortBinding) string {
	ip := ""
	if b.HostIP.IsValid() {
		ip = b.HostIP.String()
	}
	return net.JoinHostPort(ip, b.HostPort)
}

// naturalLess orders texts with numbers as people do: 80/tcp before 443/tcp.
func naturalLess(a, b string) bool {
	digits := func(s string) int {
		n := 0
		for n < len(s) && s[n] >= '0' && s[n] <= '9' {
			n++
		}
		return n
	}
	for a != "" && b != "" {
		da, db := digits(a), digits(b)
		if da > 0 && db > 0 {
			na, nb := strings.TrimLeft(a[:da], "0"), strings.TrimLeft(b[:db], "0")
			if len(na) != len(nb) {
				return len(na) < len(nb)
			}
			if na != nb {
				return na < nb
			}
			a, b = a[da:], b[db:]
			continue
		}
		if a[0] != b[0] {
			return a[0] < b[0]
		}
		a, b = a[1:], b[1:]
	}
	return len(a) < len(b)
}

func newUpdate() *verb {
	var o ctrFlags
	var edit editFlags
	v := &verb{
		use: "[OPTIONS] CONTAINER [CONTAINER...]", min: 1, max: -1, short: "Change the settings of containers", names: containers,
		long: "Changes what containers were made with, running or not. Limits, restart policy, labels, published ports and networks change while a container runs. For the rest its process is started " +
			"again, with the same name, ID, addresses and files; if that fails, what was before runs again. --dry-run tells which it would be, --undo goes back.",
		example: "corten update --memory 512m --memory-swap 1g web\ncorten update --publish-add 8443:443 --label tier=front web\ncorten update --dry-run --env DEBUG=1 web\ncorten update --undo web",
		flags: func(f *pflag.FlagSet) {
			f.Uint16Var(&o.blkioWeight, "blkio-weight", 0, "block I/O weight, 10 to 1000, 0 for none")
			f.Int64Var(&o.cpuPeriod, "cpu-period", 0, "CFS period in microseconds")
			f.Int64Var(&o.cpuQuota, "cpu-quota", 0, "CFS quota in microseconds")
			f.Int64Var(&o.cpuRtPeriod, "cpu-rt-period", 0, "real-time period in microseconds")
			f.Int64Var(&o.cpuRtRuntime, "cpu-rt-runtime", 0, "real-time runtime in microseconds")
			f.Int64VarP(&o.cpuShares, "cpu-shares", "c", 0, "relative CPU weight")
			f.StringVar(&o.cpus, "cpus", "", "number of CPUs, a decimal")
			f.StringVar(&o.cpusetCpus, "cpuset-cpus", "", "CPUs to run on (0-3, 0,1)")
			f.StringVar(&o.cpusetMems, "cpuset-mems", "", "memory nodes to use (0-3, 0,1)")
			f.StringVarP(&o.memory, "memory", "m", "", "memory limit")
			f.StringVar(&o.memorySwap, "memory-swap", "", "limit of memory plus swap; -1 for unlimited swap")
			f.StringVar(&o.memoryReservation, "memory-reservation", "", "soft memory limit")
			f.StringVar(&o.kernelMemory, "kernel-memory", "", "kernel memory limit (gone from Linux)")
			f.Int64Var(&o.pidsLimit, "pids-limit", 0, "most processes; -1 for no limit")
			f.StringVar(&o.restart, "restart", "", "what to do when the container ends: no, always, unless-stopped, on-failure[:max-retries], on-unhealthy[:max-restarts]")
			edit.register(f)
		},
	}
	v.run = func(ctx context.Context, a *app, args []string) error {
		if v.set.NFlag() == 0 {
			return invalid("you must provide one or more flags when using this command")
		}
		if o.kernelMemory != "" {
			return invalid("--kernel-memory: kernel memory limits are gone from Linux and from the API; use --memory")
		}
		var up container.UpdateConfig
		if err := o.limits(v.set, &up.Resources); err != nil {
			return err
		}
		var err error
		if up.RestartPolicy, err = parse.Restart(o.restart); err != nil {
			return err
		}
		api, err := a.engine()
		if err != nil {
			return err
		}
		if edit.given(v.set) {
			body, err := edit.body(v.set, up)
			if err != nil {
				return err
			}
			return a.each(args, func(name string) error {
				var done editedBody
				if err := api.Post(ctx, "/containers/"+esc(name)+"/edit", nil, body, &done); err != nil {
					return err
				}
				a.tellEdit(name, done, edit.dryRun)
				return nil
			})
		}
		return a.each(args, func(name string) error {
			var res container.UpdateResponse
			if err := api.Post(ctx, "/containers/"+esc(name)+"/update", nil, up, &res); err != nil {
				return err
			}
			fmt.Fprintln(a.Out, name)
			for _, w := range res.Warnings {
				fmt.Fprintln(a.Err, w)
			}
			return nil
		})
	}
	return v
}
