package builds

import (
	"strings"

	"github.com/moby/buildkit/exporter/containerimage/exptypes"

	"corten.dev/corten/internal/events"
	"corten.dev/corten/internal/reference"
)

// tell publishes what became of an export: an image that was made, its names, and where it was sent.
func (s *Service) tell(e Export, said map[string]string) {
	id := said[exptypes.ExporterImageConfigDigestKey]
	if id == "" || s.Events == nil {
		return
	}
	var names []string
	for name := range strings.SplitSeq(said[exptypes.ExporterImageNameKey], ",") {
		if ref, err := reference.Parse(name); err == nil {
			names = append(names, ref.WithDefaultTag().Familiar())
		}
	}
	publish := func(action, name string) {
		s.Events.Publish(events.Event{Type: "image", Action: action, ID: id, Attributes: map[string]string{"name": name}})
	}
	switch e.Type {
	case "image", "moby", "registry":
	default:
		return // archives are not kept here
	}
	if e.Attrs["store"] != "false" {
		publish("create", id)
		for _, name := range names {
			publish("tag", name)
		}
	}
	if e.Type == "registry" || e.Attrs["push"] == "true" {
		for _, name := range names {
			publish("push", name)
		}
	}
}
