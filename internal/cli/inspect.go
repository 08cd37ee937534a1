package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/volume"
	"github.com/spf13/pflag"

	"corten.dev/corten/internal/cli/engineapi"
	"corten.dev/corten/internal/cli/show"
	"corten.dev/corten/internal/errs"
)

// noun is a kind of thing that can be inspected.
type noun struct {
	name  string
	path  func(ref string) string
	typed func() any // what templates see first: fields by their Go names
}

func ctrNoun() noun {
	return noun{"container", func(r string) string { return "/containers/" + esc(r) + "/json" }, func() any { return &ctrInspect{} }}
}

func imgNoun() noun {
	return noun{"image", func(r string) string { return "/images/" + escRef(r) + "/json" }, func() any { return &image.InspectResponse{} }}
}

func nwNoun() noun {
	return noun{"network", func(r string) string { return "/networks/" + esc(r) }, func() any { return &network.Inspect{} }}
}

func volNoun() noun {
	return noun{"volume", func(r string) string { return "/volumes/" + esc(r) }, func() any { return &volume.Volume{} }}
}

// scriptsKnow is the newest version of the API whose containers and images have all the fields that scripts pick out, as the address at {{.NetworkSettings.IPAddress}}.
const scriptsKnow = "1.51"

// ctrInspect is a container with the fields of the default bridge that newer versions have for each network only.
type ctrInspect struct {
	container.InspectResponse
	NetworkSettings *ctrNetworks
}

type ctrNetworks struct {
	container.NetworkSettings
	Bridge, EndpointID, Gateway, GlobalIPv6Address, IPAddress, IPv6Gateway, MacAddress string
	GlobalIPv6PrefixLen, IPPrefixLen                                                   int
}

// escRef escapes an image reference but for the slashes, which the API expects as they are.
func escRef(ref string) string { return strings.ReplaceAll(url.PathEscape(ref), "%2F", "/") }

func isNotFound(err error) bool { return errors.Is(err, errs.NotFound) }

type inspectOptions struct {
	format, kind string
	size         bool
	verbose      bool
	platform     string
}

func newInspect() *verb {
	var o inspectOptions
	return &verb{
		use: "[OPTIONS] NAME|ID [NAME|ID...]", min: 1, max: -1, short: "Show all that is known about containers, images, networks or volumes", names: containers,
		long:    "Looks the names up among containers, then images, networks and volumes, and prints what the engine knows as JSON.",
		example: "corten inspect web\ncorten inspect -f '{{.State.Pid}}' web\ncorten inspect --type image busybox",
		flags: func(f *pflag.FlagSet) {
			f.StringVarP(&o.format, "format", "f", "", "how to print: json or a Go template")
			f.BoolVarP(&o.size, "size", "s", false, "add the sizes of containers")
			f.StringVar(&o.kind, "type", "", "look among these only: container, image, network or volume")
		},
		run: func(ctx context.Context, a *app, args []string) error {
			kinds := []noun{ctrNoun(), imgNoun(), nwNoun(), volNoun()}
			if o.kind != "" {
				var only []noun
				for _, k := range kinds {
					if k.name == o.kind {
						only = append(only, k)
					}
				}
				if only == nil {
					return invalid(`unknown type: %q: must be one of "container", "image", "network", "volume"`, o.kind)
				}
				kinds = only
			}
			return o.run(ctx, a, kinds, args)
		},
	}
}

func inspectOf(kind noun, names nounKind, more func(*pflag.FlagSet, *inspectOptions)) *verb {
	var o inspectOptions
	up := strings.ToUpper(kind.name)
	return &verb{
		use: "[OPTIONS] " + up + " [" + up + "...]", min: 1, max: -1, short: "Show all that is known about " + kind.name + "s", names: names,
		long: "Prints what the engine knows as JSON, or what a template picks out of it.", example: "corten " + kind.name + " inspect NAME",
		flags: func(f *pflag.FlagSet) {
			f.StringVarP(&o.format, "format", "f", "", "how to print: json or a Go template")
			if more != nil {
				more(f, &o)
			}
		},
		run: func(ctx context.Context, a *app, args []string) error { return o.run(ctx, a, []noun{kind}, args) },
	}
}

func newContainerInspect() *verb {
	return inspectOf(ctrNoun(), containers, func(f *pflag.FlagSet, o *inspectOptions) {
		f.BoolVarP(&o.size, "size", "s", false, "add sizes")
	})
}
func newImageInspect() *verb {
	return inspectOf(imgNoun(), images, func(f *pflag.FlagSet, o *inspectOptions) {
		f.StringVar(&o.platform, "platform", "", "platform of the image, os[/arch[/variant]]")
	})
}
func newVolumeInspect() *verb { return inspectOf(volNoun(), volumes, nil) }
func newNetworkInspect() *verb {
	return inspectOf(nwNoun(), networks, func(f *pflag.FlagSet, o *inspectOptions) {
		f.BoolVarP(&o.verbose, "verbose", "v", false, "ask for diagnostics")
	})
}

func (o *inspectOptions) run(ctx context.Context, a *app, kinds []noun, refs []string) error {
	if _, err := show.Parse(o.format); err != nil {
		return &exitError{code: 64, text: "template parsing error: " + err.Error()}
	}
	api, err := a.engine()
	if err != nil {
		return err
	}
	var out bytes.Buffer
	var found []json.RawMessage
	var failed []string
	for _, ref := range refs {
		raw, kind, err := o.lookup(ctx, api, kinds, ref)
		if err != nil {
			failed = append(failed, a.explain(err).Error())
			if errors.As(err, new(*reachError)) {
				break
			}
			continue
		}
		if o.format == "" || o.format == "json" {
			found = append(found, raw)
			continue
		}
		if err := inspectTemplate(&out, o.format, kind, raw); err != nil {
			out.WriteByte('\n')
			failed = append(failed, err.Error())
			break
		}
	}
	switch o.format {
	case "":
		err = printIndented(&out, found)
	case "json":
		err = printCompact(&out, found)
	}
	if err != nil {
		return err
	}
	if _, err := a.Out.Write(out.Bytes()); err != nil {
		return err
	}
	if len(failed) > 0 {
		return &exitError{code: 1, text: strings.Join(failed, "\n")}
	}
	return nil
}

// lookup asks for ref as each kind until one knows it.
func (o *inspectOptions) lookup(ctx context.Context, api *engineapi.Client, kinds []noun, ref string) (json.RawMessage, noun, error) {
	if ref == "" { // its path would be that of the list
		return nil, noun{}, invalid("invalid %s name or ID: value is empty", kinds[0].name)
	}
	var last error
	for _, k := range kinds {
		q := query("verbose", flag1(o.verbose))
		if k.name == "container" {
			q = query("size", flag1(o.size))
		}
		if k.name == "image" && o.platform != "" {
			js, err := platformJSON(o.platform)
			if err != nil {
				return nil, k, err
			}
			q.Set("platform", js)
		}
		r := engineapi.Request{Method: "GET", Path: k.path(ref), Query: q}
		if k.name == "container" || k.name == "image" {
			r.AtMost = scriptsKnow
		}
		var raw []byte
		err := api.Call(ctx, r, &raw)
		if err == nil {
			return raw, k, nil
		}
		last = err
		// A name that cannot be an image's is none: go on.
		if !isNotFound(err) && !(len(kinds) > 1 && errors.Is(err, errs.Invalid)) {
			return nil, k, err
		}
	}
	if len(kinds) > 1 {
		return nil, noun{}, errs.New(errs.NotFound, "Error: No such object: %s", ref)
	}
	return nil, noun{}, last
}

func printIndented(w *bytes.Buffer, found []json.RawMessage) error {
	if len(found) == 0 {
		w.WriteString("[]\n")
		return nil
	}
	if err := json.Indent(w, joinRaw(found), "", "    "); err != nil {
		return fmt.Errorf("read answer: %w", err)
	}
	w.WriteByte('\n')
	return nil
}

// joinRaw writes the values as one array, unchanged.
func joinRaw(found []json.RawMessage) []byte {
	buf := []byte{'['}
	for i, r := range found {
		if i > 0 {
			buf = append(buf, ',')
		}
		buf = append(buf, bytes.TrimSpace(r)...)
	}
	return append(buf, ']')
}

func printCompact(w *bytes.Buffer, found []json.RawMessage) error {
	if err := json.Compact(w, joinRaw(found)); err != nil {
		return fmt.Errorf("read answer: %w", err)
	}
	w.WriteByte('\n')
	return nil
}

// inspectTemplate runs the template on the API's type, and if that lacks a field, on the JSON itself.
func inspectTemplate(w io.Writer, format string, kind noun, raw json.RawMessage) error {
	t, err := show.Parse(format)
	if err != nil {
		return err
	}
	var buf bytes.Buffer
	typed := kind.typed()
	if err := json.Unmarshal(raw, typed); err == nil {
		if err := t.Execute(&buf, typed); err == nil {
			buf.WriteByte('\n')
			_, err = w.Write(buf.Bytes())
			return err
		}
	}
	buf.Reset()
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	var plain any
	if err := dec.Decode(&plain); err != nil {
		return fmt.Errorf("read answer: %w", err)
	}
	if err := t.Option("missingkey=error").Execute(&buf, plain); err != nil {
		return errs.New(errs.Invalid, "template parsing error: %w", err)
	}
	buf.WriteByte('\n')
	_, err = w.Write(buf.Bytes())
	return err
}
