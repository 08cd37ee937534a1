package cli

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"corten.dev/corten/internal/buildwire"
	"corten.dev/corten/internal/cli/buildprogress"
	"corten.dev/corten/internal/cli/engineapi"
)

func newBuild() *verb {
	var o buildFlags
	return &verb{
		use: "[OPTIONS] PATH | URL | -", min: 1, max: 1, short: "Build an image from a Dockerfile",
		long: "Builds what the Dockerfile says from the files in PATH, from a git or http address, or from an archive or a Dockerfile on\n" +
			"standard input (-). The engine on this host reads PATH in place, as it is during the build; to another host only what has\n" +
			"changed travels. Read in place, the files are read with the engine's rights: those in PATH that you cannot read yourself are\n" +
			"part of the context, too. The result is an image in the engine, unless --output or --push says otherwise.",
		example: "corten build -t app .\ncorten build -t app -f deploy/Dockerfile --build-arg VERSION=2 .\ncorten build --secret id=token,env=TOKEN --ssh default .\n" +
			"corten build --platform linux/amd64,linux/arm64 --push -t registry.example.org/app .\ncorten build -o out .\ncorten build --check .\n" +
			"corten build --on-error=shell .\necho 'FROM busybox' | corten build -",
		flags: o.register,
		run:   func(ctx context.Context, a *app, args []string) error { return o.run(ctx, a, args[0]) },
	}
}

func (o *buildFlags) run(ctx context.Context, a *app, path string) error {
	if err := o.settle(); err != nil {
		return err
	}
	d, err := a.buildDisplay(o.progress, o.quiet, "")
	if err != nil {
		return err
	}
	p, err := o.plan(a, path)
	if err != nil {
		return err
	}
	if o.metadataFile != "" {
		p.req.Provenance = metadataProvenance()
	}
	if o.iidfile != "" { // what an earlier build wrote there is not this one's
		if err := os.Remove(o.iidfile); err != nil && !errors.Is(err, os.ErrNotExist) {
			return errors.Join(fmt.Errorf("--iidfile: %w", err), p.close())
		}
	}
	ctx, stop := cancellable(ctx)
	defer stop()
	resp, err := a.runBuild(ctx, p, d)
	if err != nil {
		p.drop()
	}
	err = errors.Join(err, d.Finish(), d.Warned(a.global.debug), p.close())
	if err != nil {
		return a.buildFailed(err)
	}
	if p.call != "" {
		return a.callResult(o, p, resp)
	}
	return o.results(a, p, resp, d.Warnings())
}

// imageID is what docker calls the result.
func imageID(resp buildwire.Response) string {
	if id := resp.Exporter["containerimage.config.digest"]; id != "" {
		return id
	}
	return resp.Exporter["containerimage.digest"]
}

// results writes the files that were asked for, and the id of a quiet build.
func (o *buildFlags) results(a *app, p *buildPlan, resp buildwire.Response, warnings []buildprogress.Warning) error {
	id := imageID(resp)
	if o.iidfile != "" {
		if id == "" {
			return &exitError{code: 1, text: "ERROR: --iidfile: the build made no image"}
		}
		if err := os.WriteFile(o.iidfile, []byte(id), 0o644); err != nil {
			return fmt.Errorf("writing image ID file: %w", err)
		}
	}
	if o.metadataFile != "" {
		if err := writeMetadata(o.metadataFile, metadata(resp.Exporter, p.req.Ref), warnings); err != nil {
			return err
		}
	}
	if o.quiet && id != "" {
		fmt.Fprintln(a.Out, id)
	}
	return nil
}

// metadata is what is told of a build in the file of --metadata-file: values that are JSON in base64 become JSON.
func metadata(exporter map[string]string, ref string) map[string]any {
	out := map[string]any{"buildx.build.ref": "default/default/" + ref}
	for key, value := range exporter {
		out[key] = value
		raw, err := base64.StdEncoding.DecodeString(value)
		if err != nil {
			continue
		}
		if raw = bytes.TrimSpace(raw); len(raw) > 0 && (raw[0] == '{' || raw[0] == '[') && json.Valid(raw) {
			out[key] = json.RawMessage(raw)
		}
	}
	return out
}

// metadataProvenance is how much of the provenance goes into that file, as buildx is told it: "min", "max" or, for nothing, "".
func metadataProvenance() string {
	text := os.Getenv("BUILDX_METADATA_PROVENANCE")
	on, isBool := boolOf(text)
	switch {
	case text == "max":
		return text
	case text == "disabled" || isBool && !on:
		return ""
	}
	return "min"
}

// writeMetadata writes that file, with what the linter found where that is asked for.
func writeMetadata(name string, doc map[string]any, warnings []buildprogress.Warning) error {
	if on, _ := boolOf(os.Getenv("BUILDX_METADATA_WARNINGS")); on && len(warnings) > 0 {
		doc["buildx.build.warnings"] = warnings
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(doc); err != nil {
		return fmt.Errorf("--metadata-file: %w", err)
	}
	if err := os.WriteFile(name, bytes.TrimSuffix(b.Bytes(), []byte("\n")), 0o644); err != nil {
		return fmt.Errorf("--metadata-file: %w", err)
	}
	return nil
}

// callResult prints what a subrequest answered, and gives buildx's exit code.
func (a *app) callResult(o *buildFlags, p *buildPlan, resp buildwire.Response) error {
	text, js := resp.Exporter["result.txt"], resp.Exporter["result.json"]
	if text == "" && js == "" {
		return &exitError{code: 1, text: "ERROR: the frontend has no answer to --call=" + o.call}
	}
	var found lintAnswer
	lint := p.call == "frontend.lint"
	if lint && js != "" {
		if err := json.Unmarshal([]byte(js), &found); err != nil {
			return fmt.Errorf("read the linter's answer: %w", err)
		}
	}
	warned, asText := len(found.Warnings), p.format != "json"
	switch {
	case asText && warned == 1:
		fmt.Fprintln(a.Out, "Check complete, 1 warning has been found!")
	case asText && warned > 1:
		fmt.Fprintf(a.Out, "Check complete, %d warnings have been found!\n", warned)
	}
	if !asText && js != "" || text == "" && !lint {
		fmt.Fprintln(a.Out, strings.TrimRight(js, "\n"))
	} else {
		fmt.Fprint(a.Out, text)
	}
	switch {
	case found.Error != nil:
		if asText && warned > 0 {
			fmt.Fprintln(a.Out)
		}
		return found.refusal()
	case warned > 0:
		return &exitError{code: 1}
	case lint && asText:
		fmt.Fprintln(a.Out, "Check complete, no warnings found.")
	}
	return nil
}

// lintAnswer is what the linter found, and what would end the build.
type lintAnswer struct {
	Warnings []json.RawMessage      `json:"warnings"`
	Sources  []buildprogress.Source `json:"sources"`
	Error    *struct {
		Message  string `json:"message"`
		Location struct {
			Source int                   `json:"sourceIndex"`
			Ranges []buildprogress.Range `json:"ranges"`
		} `json:"location"`
	} `json:"buildError"`
}

// refusal is the error, with the lines that it is about.
func (l lintAnswer) refusal() error {
	var b strings.Builder
	fmt.Fprintln(&b, "ERROR: "+l.Error.Message)
	if at := l.Error.Location; at.Source >= 0 && at.Source < len(l.Sources) && len(at.Ranges) > 0 {
		if err := l.Sources[at.Source].Lines(&b, at.Ranges); err != nil {
			return err
		}
	}
	return &exitError{code: 1, text: strings.TrimRight(b.String(), "\n")}
}

// hostGateway asks the engine for the address by which containers reach the host.
func (a *app) hostGateway() (string, error) {
	api, err := a.engine()
	if err != nil {
		return "", err
	}
	var nw struct {
		IPAM struct{ Config []struct{ Gateway string } }
	}
	if err := api.Call(context.Background(), engineapi.Request{Method: "GET", Path: "/networks/bridge"}, &nw); err != nil {
		return "", fmt.Errorf("--add-host: host-gateway: %w", err)
	}
	for _, c := range nw.IPAM.Config {
		if addr, err := netip.ParseAddr(c.Gateway); err == nil {
			return addr.String(), nil
		}
	}
	return "", &exitError{code: 1, text: "ERROR: --add-host: the engine's bridge has no gateway"}
}
