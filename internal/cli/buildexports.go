package cli

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"corten.dev/corten/internal/buildwire"
)

// buildSink is where an exporter's stream goes: a file, standard output, or a folder.
type buildSink struct {
	file string // path; "-" is standard output
	dir  string
	temp string // what was written, until the build has succeeded
}

// planExports says what becomes of the result.
func (o *buildFlags) planExports(a *app, p *buildPlan) error {
	if p.call != "" {
		return nil
	}
	names, err := o.names()
	if err != nil {
		return err
	}
	outputs := o.outputs
	if o.push {
		outputs = pushed(outputs)
	}
	if o.load || len(outputs) == 0 {
		outputs = append(outputs[:len(outputs):len(outputs)], "type=image")
	}
	annotations := map[string]string{}
	for _, text := range o.annotations {
		attrs, err := annotationAttrs(text)
		if err != nil {
			return err
		}
		maps.Copy(annotations, attrs)
	}
	for i, text := range outputs {
		e, sink, err := a.parseOutput(text)
		if err != nil {
			return err
		}
		e.ID = strconv.Itoa(i)
		if len(names) > 0 && named(e.Type) { // -t wins over a name in --output, as in buildx: it was lost beside one
			e.Attrs["name"] = strings.Join(names, ",")
		}
		if e.Attrs["push"] == "true" && e.Attrs["name"] == "" {
			return &exitError{code: 1, text: "ERROR: tag is needed when pushing to registry"}
		}
		if named(e.Type) {
			maps.Copy(e.Attrs, annotations)
		} else if len(annotations) > 0 && e.Type != "cacheonly" {
			return invalid("ERROR: --annotation: the output %s has no place for annotations", e.Type)
		}
		p.req.Exports = append(p.req.Exports, e)
		if sink != nil {
			p.sinks[e.ID] = sink
		}
		if e.Type == "oci" && sink.dir != "" {
			if p.stores[exportStore] != "" {
				return invalid("ERROR: --output: only one output can be the folder of a layout (tar=false)")
			}
			p.stores[exportStore] = sink.dir
		}
	}
	return nil
}

// exportStore is what BuildKit calls the layout that an exporter writes to.
const exportStore = "export"

// named: the exporter makes images, which have names and annotations.
func named(kind string) bool { return kind == "image" || kind == "oci" || kind == "docker" }

// pushed is --push: images that are asked for are sent, and if none is, one is made.
func pushed(outputs []string) []string {
	var out []string
	found := false
	for _, text := range outputs {
		if m, err := csvMap(text); err == nil && (m["type"] == "image" || m["type"] == "registry") {
			found = true
			if m["type"] == "image" && m["push"] == "" {
				text += ",push=true"
			}
		}
		out = append(out, text)
	}
	if !found {
		out = append(out, "type=image,push=true")
	}
	return out
}

// parseOutput reads one -o: key=value pairs, a folder, or - for a tar on standard output.
func (a *app) parseOutput(text string) (e buildwire.Export, sink *buildSink, err error) {
	e.Attrs = map[string]string{}
	if !strings.Contains(text, "=") {
		if text == "-" {
			e.Type, sink = "tar", &buildSink{file: "-"}
		} else {
			e.Type, sink = "local", &buildSink{dir: text}
		}
		return e, sink, a.checkSink(&e, sink)
	}
	if e.Attrs, err = csvMap(text); err != nil {
		return e, nil, invalid("ERROR: --output %s: %w", text, err)
	}
	e.Type = e.Attrs["type"]
	dest, hasDest := e.Attrs["dest"]
	delete(e.Attrs, "type")
	delete(e.Attrs, "dest")
	switch e.Type {
	case "registry":
		e.Type, e.Attrs["push"] = "image", "true"
		fallthrough
	case "image", "moby", "cacheonly":
		if hasDest {
			return e, nil, invalid("ERROR: --output %s: an %s has no dest", text, e.Type)
		}
		if e.Type == "moby" {
			e.Type = "image"
		}
		return e, nil, nil
	case "docker":
		if !hasDest { // into the store: that is what an image is
			e.Type = "image"
			return e, nil, nil
		}
		sink = &buildSink{file: dest}
	case "oci":
		sink = &buildSink{file: dest}
		if on, ok := boolOf(e.Attrs["tar"]); ok && !on {
			e.Attrs["tar"] = "false"
			sink = &buildSink{dir: dest}
		} else if !hasDest {
			sink.file = "-"
		}
	case "tar":
		sink = &buildSink{file: dest}
		if !hasDest {
			sink.file = "-"
		}
	case "local":
		sink = &buildSink{dir: dest}
	case "":
		return e, nil, invalid("ERROR: --output %s: type is required", text)
	default:
		return e, nil, invalid("ERROR: --output %s: unknown type %q: use image, registry, local, tar, oci, docker or cacheonly", text, e.Type)
	}
	return e, sink, a.checkSink(&e, sink)
}

// checkSink refuses before the build what could not be written after it.
func (a *app) checkSink(e *buildwire.Export, s *buildSink) error {
	switch {
	case s.dir == "" && s.file == "":
		return invalid("ERROR: dest is required for %s output", e.Type)
	case s.dir == "-":
		return invalid("ERROR: dest cannot be stdout for %s output", e.Type)
	case s.file == "-":
		if _, terminal := terminalFd(a.Out); terminal {
			return invalid("ERROR: dest file is required for %s output. refusing to write to console", e.Type)
		}
	case s.file != "":
		if st, err := os.Stat(s.file); err == nil && st.IsDir() {
			return invalid("ERROR: destination %q is a directory", s.file)
		}
	}
	if s.dir != "" {
		s.dir = filepath.Clean(s.dir)
	}
	return nil
}

// planCaches reads --cache-from and --cache-to.
func (o *buildFlags) planCaches(a *app, p *buildPlan) error {
	read := func(flag string, list []string) (out []buildwire.Cache, err error) {
		for _, text := range list {
			if !strings.Contains(text, "=") {
				for _, ref := range strings.Split(text, ",") {
					out = append(out, buildwire.Cache{Type: "registry", Attrs: map[string]string{"ref": ref}})
				}
				continue
			}
			m, err := csvMap(text)
			if err != nil {
				return nil, invalid("ERROR: --%s %s: %w", flag, text, err)
			}
			c := buildwire.Cache{Type: m["type"], Attrs: m}
			delete(m, "type")
			if c.Type == "" {
				return nil, invalid("ERROR: --%s %s: type is required", flag, text)
			}
			if c.Type == "local" {
				key := map[string]string{"cache-from": "src", "cache-to": "dest"}[flag]
				dir := m[key]
				if dir == "" {
					return nil, invalid("ERROR: --%s %s: %s is required", flag, text, key)
				}
				if _, err := os.Stat(filepath.Join(dir, "index.json")); err != nil && key == "src" { // the first build has none
					fmt.Fprintf(a.Err, "WARNING: local cache import at %s not found due to err: %v\n", dir, err)
					continue
				}
				p.stores["local:"+dir] = dir // as BuildKit's clients name them
			}
			out = append(out, c)
		}
		return out, nil
	}
	var err error
	if p.req.CacheFrom, err = read("cache-from", o.cacheFrom); err != nil {
		return err
	}
	p.req.CacheTo, err = read("cache-to", o.cacheTo)
	return err
}
