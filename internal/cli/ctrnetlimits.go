package cli

import (
	"fmt"
	"maps"

	"github.com/moby/moby/api/types/container"
	"github.com/spf13/pflag"
)

// What the flags write, as annotations of a container and options of a network; docs/egress.md names them for other clients.
const (
	annotationEgress      = "dev.corten.egress"
	annotationRateEgress  = "dev.corten.rate.egress"
	annotationRateIngress = "dev.corten.rate.ingress"
)

// netLimitFlags bound what a container does on its networks.
type netLimitFlags struct{ egress, rateEgress, rateIngress string }

func (n *netLimitFlags) register(f *pflag.FlagSet) {
	f.StringVar(&n.egress, "egress", "", "let it connect only there: none, or a list such as 10.0.0.0/8,example.org:443 (docs/egress.md)")
	f.StringVar(&n.rateEgress, "net-egress-bps", "", "bits per second that it sends on each network at most (500k, 10m, 1g)")
	f.StringVar(&n.rateIngress, "net-ingress-bps", "", "bits per second that it receives on each network at most")
}

// registerFor is register for networks.
func (n *netLimitFlags) registerFor(f *pflag.FlagSet, whom string) {
	f.StringVar(&n.egress, "egress", "", "let "+whom+" connect only there: none, or a list such as 10.0.0.0/8,example.org:443 (docs/egress.md)")
	f.StringVar(&n.rateEgress, "net-egress-bps", "", "bits per second that each of "+whom+" sends there at most (500k, 10m, 1g)")
	f.StringVar(&n.rateIngress, "net-ingress-bps", "", "bits per second that each of "+whom+" receives there at most")
}

// changes are the flags of update that were given, as annotations or options of a network; "0" takes a rate away.
func (n *netLimitFlags) changes(set *pflag.FlagSet) map[string]string {
	all := map[string]string{}
	for _, a := range n.named() {
		switch {
		case !set.Changed(a.flag):
		case a.value == "0" && a.name != annotationEgress, a.value == "all" && a.name == annotationEgress:
			all[a.name] = ""
		default:
			all[a.name] = a.value
		}
	}
	return all
}

type namedLimit struct{ flag, name, value string }

func (n *netLimitFlags) named() []namedLimit {
	return []namedLimit{{"egress", annotationEgress, n.egress}, {"net-egress-bps", annotationRateEgress, n.rateEgress}, {"net-ingress-bps", annotationRateIngress, n.rateIngress}}
}

// check refuses a flag without a value, which would mean that nothing is asked for.
func (n *netLimitFlags) check(set *pflag.FlagSet) error {
	for _, a := range n.named() {
		if set.Changed(a.flag) && a.value == "" {
			return badFlag(a.flag, a.value, invalid("want a value: all or 0 for no limit"))
		}
	}
	return nil
}

// apply puts the flags into the request.
func (n *netLimitFlags) apply(host *container.HostConfig) error {
	for _, a := range n.named() {
		if err := annotate(host, a.flag, a.name, a.value); err != nil {
			return err
		}
	}
	return nil
}

// annotate writes a flag as the annotation that stands for it.
func annotate(host *container.HostConfig, flag, name, value string) error {
	if value == "" {
		return nil
	}
	if given, twice := host.Annotations[name]; twice {
		return fmt.Errorf("conflicting options: --%s and --annotation %s=%s", flag, name, given)
	}
	host.Annotations = maps.Clone(host.Annotations)
	if host.Annotations == nil {
		host.Annotations = map[string]string{}
	}
	host.Annotations[name] = value
	return nil
}
