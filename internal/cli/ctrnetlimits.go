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

// apply puts the flags into the request.
func (n *netLimitFlags) apply(host *container.HostConfig) error {
	for _, a := range []struct{ flag, name, value string }{
		{"egress", annotationEgress, n.egress}, {"net-egress-bps", annotationRateEgress, n.rateEgress}, {"net-ingress-bps", annotationRateIngress, n.rateIngress},
	} {
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
