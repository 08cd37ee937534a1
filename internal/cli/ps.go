package cli

import (
	"context"
	"fmt"
	"net/netip"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"
	"github.com/spf13/pflag"

	"corten.dev/corten/internal/cli/show"
)

const formatUsage = "how to print: table, table TEMPLATE, json, or a Go template"

type psOptions struct {
	all, quiet, size, noTrunc, latest bool
	last                              int
	format                            string
	filter                            filters
}

func newPs() *verb {
	o := psOptions{filter: filters{}}
	return &verb{
		use: "[OPTIONS]", short: "List containers",
		long:    "Lists the running containers, or all of them with -a.",
		example: "corten ps\ncorten ps -a --filter status=exited --format '{{.Names}}: {{.Status}}'",
		flags: func(f *pflag.FlagSet) {
			f.BoolVarP(&o.all, "all", "a", false, "show those that do not run, too")
			f.BoolVarP(&o.quiet, "quiet", "q", false, "print IDs only")
			f.BoolVarP(&o.size, "size", "s", false, "show sizes")
			f.BoolVar(&o.noTrunc, "no-trunc", false, "do not shorten")
			f.BoolVarP(&o.latest, "latest", "l", false, "show the newest container, running or not")
			f.IntVarP(&o.last, "last", "n", -1, "show the n newest containers, running or not")
			f.VarP(o.filter, "filter", "f", "show only what fits name=value")
			f.StringVar(&o.format, "format", "", formatUsage)
		},
		run: func(ctx context.Context, a *app, args []string) error { return o.run(ctx, a) },
	}
}

func (o *psOptions) run(ctx context.Context, a *app) error {
	api, err := a.engine()
	if err != nil {
		return err
	}
	if o.format == "" && !o.quiet {
		o.format = a.cfg.PsFormat
	}
	if o.quiet && o.format != "" && o.format != "table" {
		fmt.Fprintln(a.Err, "WARNING: Ignoring custom format, because both --format and --quiet are set.")
		if o.format != "raw" {
			o.format = ""
		}
	}
	withSize := o.size || strings.Contains(o.format, ".Size") || strings.Contains(o.format, "json .}}")
	if o.latest {
		o.last = 1
	}
	q := query("all", flag1(o.all), "size", flag1(withSize))
	if o.last > 0 {
		q.Set("limit", itoa(o.last))
	}
	if !withSize && (o.format == "" || o.format == "table") { // an engine of ours then leaves out what the table does not show
		q.Set("brief", "1")
	}
	var list []container.Summary
	if err := api.Get(ctx, "/containers/json", o.filter.into(q), &list); err != nil {
		return err
	}
	raw := "container_id: {{.ID}}\nimage: {{.Image}}\ncommand: {{.Command}}\ncreated_at: {{.CreatedAt}}\nstate: {{.State}}\nstatus: {{.Status}}\nnames: {{.Names}}\nlabels:{{with .Labels}} {{.}}{{end}}\nports:{{with .Ports}} {{.}}{{end}}\n"
	format := "table {{.ID}}\t{{.Image}}\t{{.Command}}\t{{.RunningFor}}\t{{.Status}}\t{{.Ports}}\t{{.Names}}"
	if o.size {
		format += "\t{{.Size}}"
		raw += "size: {{.Size}}\n"
	}
	l := show.List{Format: o.format, Default: format, Quiet: "{{.ID}}", IsQuiet: o.quiet, Raw: raw, QuietRaw: "container_id: {{.ID}}", Headers: show.Headers{
		"ID": "CONTAINER ID", "Names": "NAMES", "Image": "IMAGE", "Command": "COMMAND", "CreatedAt": "CREATED AT",
		"RunningFor": "CREATED", "Ports": "PORTS", "State": "STATE", "Status": "STATUS", "Size": "SIZE", "Labels": "LABELS",
		"Mounts": "MOUNTS", "LocalVolumes": "LOCAL VOLUMES", "Networks": "NETWORKS", "Platform": "PLATFORM",
	}}
	l.Cells = func(row any) []string {
		r := row.(*ctrRow)
		cells := []string{r.ID(), r.Image(), r.Command(), r.RunningFor(), r.Status(), r.Ports(), r.Names()}
		if o.size {
			cells = append(cells, r.Size())
		}
		return cells
	}
	rows := make([]any, len(list))
	now := time.Now()
	for i := range list {
		rows[i] = &ctrRow{c: &list[i], full: o.noTrunc, now: now}
	}
	return l.Print(a.Out, rows)
}

// ctrRow is a line of ps.
type ctrRow struct {
	c    *container.Summary
	full bool
	now  time.Time
}

func (r *ctrRow) MarshalJSON() ([]byte, error) { return show.MarshalRow(r) }

func (r *ctrRow) ID() string {
	if r.full {
		return r.c.ID
	}
	return show.ShortID(r.c.ID)
}

// Names leaves out the names that links gave, unless nothing shall be left out.
func (r *ctrRow) Names() string {
	var out []string
	for _, n := range r.c.Names {
		n = strings.TrimPrefix(n, "/")
		if r.full || !strings.Contains(n, "/") {
			out = append(out, n)
		}
	}
	return strings.Join(out, ",")
}

func (r *ctrRow) Image() string {
	if r.c.Image == "" {
		return "<no image>"
	}
	if r.full {
		return r.c.Image
	}
	if short := show.ShortID(r.c.ImageID); short == show.ShortID(r.c.Image) {
		return short
	}
	if name, _, ok := strings.Cut(r.c.Image, "@"); ok {
		return name
	}
	return r.c.Image
}

func (r *ctrRow) Command() string {
	cmd := r.c.Command
	if !r.full {
		cmd = show.Ellipsis(cmd, 20)
	}
	return strconv.Quote(cmd)
}

func (r *ctrRow) CreatedAt() string { return time.Unix(r.c.Created, 0).String() }

func (r *ctrRow) RunningFor() string {
	return units.HumanDuration(r.now.Sub(time.Unix(r.c.Created, 0))) + " ago"
}

func (r *ctrRow) Ports() string  { return portList(r.c.Ports) }
func (r *ctrRow) State() string  { return string(r.c.State) }
func (r *ctrRow) Status() string { return r.c.Status }

func (r *ctrRow) Size() string {
	if r.c.SizeRw < 0 { // of system df: not counted yet
		return "N/A"
	}
	s := units.HumanSizeWithPrecision(float64(r.c.SizeRw), 3)
	if r.c.SizeRootFs > 0 {
		s += " (virtual " + units.HumanSizeWithPrecision(float64(r.c.SizeRootFs), 3) + ")"
	}
	return s
}

func (r *ctrRow) Labels() string { return show.Labels(r.c.Labels) }

// Label is the value of one label.
func (r *ctrRow) Label(name string) string { return r.c.Labels[name] }

func (r *ctrRow) Mounts() string {
	var out []string
	for _, m := range r.c.Mounts {
		name := m.Name
		if name == "" {
			name = m.Source
		}
		if !r.full {
			name = show.Ellipsis(name, 15)
		}
		out = append(out, name)
	}
	return strings.Join(out, ",")
}

func (r *ctrRow) LocalVolumes() string {
	n := 0
	for _, m := range r.c.Mounts {
		if m.Driver == "local" {
			n++
		}
	}
	return strconv.Itoa(n)
}

func (r *ctrRow) Networks() string {
	if r.c.NetworkSettings == nil {
		return ""
	}
	out := make([]string, 0, len(r.c.NetworkSettings.Networks))
	for name := range r.c.NetworkSettings.Networks {
		out = append(out, name)
	}
	sort.Strings(out)
	return strings.Join(out, ",")
}

func (r *ctrRow) Platform() any {
	if r.c.ImageManifestDescriptor == nil {
		return nil
	}
	return r.c.ImageManifestDescriptor.Platform
}

// portList writes published ports as ip:host->container/proto, neighbours joined to ranges.
func portList(ports []container.PortSummary) string {
	if len(ports) == 0 {
		return ""
	}
	sort.Slice(ports, func(i, j int) bool { return portLess(ports[i], ports[j]) })
	type group struct{ first, last uint16 }
	open := map[string]*group{}
	var keys, out, moved []string // moved: published under another number, shown last
	for _, p := range ports {
		proto, cur := p.Type, p.PrivatePort
		key := proto
		if p.IP.IsValid() {
			if p.PublicPort != cur {
				moved = append(moved, fmt.Sprintf("%s:%d->%d/%s", hostIP(p.IP), p.PublicPort, cur, proto))
				continue
			}
			key = hostIP(p.IP) + "/" + proto
		}
		g := open[key]
		if g == nil {
			open[key] = &group{cur, cur}
			keys = append(keys, key)
			continue
		}
		if cur == g.last || cur == g.last+1 {
			g.last = cur
			continue
		}
		out = append(out, portGroup(key, g.first, g.last))
		open[key] = &group{cur, cur}
	}
	for _, key := range keys {
		out = append(out, portGroup(key, open[key].first, open[key].last))
	}
	return strings.Join(append(out, moved...), ", ")
}

func hostIP(ip netip.Addr) string {
	if ip.Is6() && !ip.Is4In6() {
		return "[" + ip.String() + "]"
	}
	return ip.String()
}

func portGroup(key string, first, last uint16) string {
	i := strings.LastIndex(key, "/")
	s := strconv.Itoa(int(first))
	if first != last {
		s += "-" + strconv.Itoa(int(last))
	}
	if i >= 0 {
		s = key[:i] + ":" + s + "->" + s
	}
	return s + "/" + key[i+1:]
}

func portLess(a, b container.PortSummary) bool {
	if a.PrivatePort != b.PrivatePort {
		return a.PrivatePort < b.PrivatePort
	}
	if as, bs := addrText(a.IP), addrText(b.IP); as != bs {
		return as < bs
	}
	if a.PublicPort != b.PublicPort {
		return a.PublicPort < b.PublicPort
	}
	return a.Type < b.Type
}

func addrText(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}
