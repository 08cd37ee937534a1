package cli

import (
	"fmt"
	"maps"

	"github.com/moby/moby/api/types/container"
	"github.com/spf13/pflag"
)

// annotationEgress is what --egress writes, as an annotation of a container and an option of a network; docs/egress.md names it for other clients.
const annotationEgress = "dev.corten.egress"

// netLimitFlags bound what a container does on its networks.
type netLimitFlags struct{ egress string }

func (n *netLimitFlags) register(f *pflag.FlagSet) {
	f.StringVar(&n.egress, "egress", "", "let it connect only there: none, or a list such as 10.0.0.0/8,example.org:443 (docs/egress.md)")
}

// apply puts the flags into the request.
func (n *netLimitFlags) apply(host *container.HostConfig) error {
	return annotate(host, "egress", annotationEgress, n.egress)
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
