package ship

import (
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"text/template"

	"encoding/json"

	"corten.dev/corten/internal/errs"
)

// ID is the container's id in its short form.
func (i *Info) ID() string { return short(i.ContainerID) }

// FullID is the container's id.
func (i *Info) FullID() string { return i.ContainerID }

// Name is the container's name without the slash.
func (i *Info) Name() string { return strings.TrimPrefix(i.ContainerName, "/") }

// ImageID is the image's id in its short form.
func (i *Info) ImageID() string { return short(i.ContainerImageID) }

// ImageFullID is the image's id.
func (i *Info) ImageFullID() string { return i.ContainerImageID }

// ImageName is the image as the container's creator wrote it.
func (i *Info) ImageName() string { return i.ContainerImageName }

// Hostname is the host's name.
func (i *Info) Hostname() (string, error) { return i.Host, nil }

// Command is the container's program with its arguments.
func (i *Info) Command() string {
	return strings.Join(append([]string{i.ContainerEntrypoint}, i.ContainerArgs...), " ")
}

// Docker cuts every id after twelve characters, that of an image with its algorithm too.
func short(id string) string { return id[:min(len(id), 12)] }

// Tag executes the template of the option "tag"; fallback stands in for one that is not given.
func (i *Info) Tag(fallback string) (string, error) {
	text := i.Config["tag"]
	if text == "" {
		text = fallback
	}
	if text == "" || !strings.Contains(text, "{{") {
		return text, nil
	}
	tmpl, err := template.New("log-tag").Funcs(template.FuncMap{
		"json": toJSON, "split": strings.Split, "join": strings.Join, "title": title, "lower": strings.ToLower, "upper": strings.ToUpper, "pad": pad, "truncate": truncate, "println": fmt.Sprintln,
	}).Parse(text)
	if err != nil {
		return "", errs.New(errs.Invalid, "%w", err)
	}
	var b strings.Builder
	if err := tmpl.Execute(&b, i); err != nil {
		return "", errs.New(errs.Invalid, "%w", err)
	}
	return b.String(), nil
}

// DefaultTag is Docker's.
const DefaultTag = "{{.ID}}"

func toJSON(v any) (string, error) {
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	err := enc.Encode(v)
	return strings.TrimSpace(b.String()), err
}

// title makes each word begin with a capital.
func title(s string) string {
	words := strings.Split(s, " ")
	for i, w := range words {
		if w != "" {
			words[i] = strings.ToUpper(w[:1]) + w[1:]
		}
	}
	return strings.Join(words, " ")
}

// maxPad bounds what a template can make of nothing.
const maxPad = 1024

func pad(s string, before, after int) string {
	if s == "" {
		return s
	}
	return strings.Repeat(" ", max(min(before, maxPad), 0)) + s + strings.Repeat(" ", max(min(after, maxPad), 0))
}

func truncate(s string, n int) string {
	r := []rune(s)
	return string(r[:max(min(n, len(r)), 0)])
}

// Attributes are the labels and variables that the options labels, labels-regex, env and env-regex name. rename, if set, changes their names.
func (i *Info) Attributes(rename func(string) string) (map[string]string, error) {
	attrs := map[string]string{}
	add := func(key, value string) {
		if rename != nil {
			key = rename(key)
		}
		attrs[key] = value
	}
	env := map[string]string{}
	for _, kv := range i.ContainerEnv {
		if key, value, ok := strings.Cut(kv, "="); ok {
			env[key] = value
		}
	}
	for _, part := range []struct {
		list, pattern string
		of            map[string]string
	}{{i.Config["labels"], i.Config["labels-regex"], i.ContainerLabels}, {i.Config["env"], i.Config["env-regex"], env}} {
		if part.list != "" {
			for _, key := range strings.Split(part.list, ",") {
				if value, ok := part.of[key]; ok {
					add(key, value)
				}
			}
		}
		if part.pattern == "" {
			continue
		}
		re, err := regexp.Compile(part.pattern)
		if err != nil {
			return nil, errs.New(errs.Invalid, "%w", err)
		}
		for key, value := range part.of {
			if re.MatchString(key) {
				add(key, value)
			}
		}
	}
	return attrs, nil
}

// Details are the attributes and the tag that `logs --details` shows, "k=v,k=v" with what Docker escapes escaped.
func (i *Info) Details() (string, error) {
	attrs, err := i.Attributes(nil)
	if err != nil {
		return "", err
	}
	if i.Config["tag"] != "" {
		if attrs["tag"], err = i.Tag(""); err != nil {
			return "", err
		}
	}
	list := make([]string, 0, len(attrs))
	for key, value := range attrs {
		list = append(list, url.QueryEscape(key)+"="+url.QueryEscape(value))
	}
	slices.Sort(list)
	return strings.Join(list, ","), nil
}
