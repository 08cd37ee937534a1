package server

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"corten.dev/corten/internal/manifest"
)

// page is what a request wants of a list.
type page struct {
	n    int
	last string
	own  bool // the client named n
}

func (c *call) page() (page, error) {
	query := c.req.URL.Query()
	p := page{n: c.r.limits.Page, last: query.Get("last")}
	if s := query.Get("n"); s != "" {
		n, ok := number(s)
		if !ok {
			return p, refuse(http.StatusBadRequest, codeUnsupported, "n=%.20q is not a number", s)
		}
		p.n, p.own = int(min(n, int64(c.r.limits.Page))), true
	}
	return p, nil
}

// names collects one page of a walk; more tells that there are others behind it.
func (p page) names(walk func(after string, fn func(string) error) error) (names []string, more bool, err error) {
	names = []string{}
	if p.n == 0 {
		return names, false, nil
	}
	err = walk(p.last, func(name string) error {
		if len(names) == p.n {
			more = true
			return errEnough
		}
		names = append(names, name)
		return nil
	})
	return names, more, enough(err)
}

// next announces the following page (RFC 5988).
func (c *call) next(p page, last string) {
	query := url.Values{"last": {last}}
	if p.own {
		query.Set("n", strconv.Itoa(p.n))
	}
	if t := c.req.URL.Query().Get("artifactType"); t != "" && c.route.kind == routeReferrers {
		query.Set("artifactType", t)
	}
	link := url.URL{Path: c.req.URL.Path, RawQuery: query.Encode()}
	c.w.Header().Set("Link", "<"+c.location(link.String())+`>; rel="next"`)
}

func (c *call) listTags() error {
	p, err := c.page()
	if err != nil {
		return err
	}
	ctx, repo := c.req.Context(), c.route.name
	names, more, err := p.names(func(after string, fn func(string) error) error { return c.r.tagNames(ctx, repo, after, fn) })
	if err != nil {
		return err
	}
	if len(names) == 0 {
		there, err := c.r.exists(ctx, repo)
		if err != nil {
			return err
		}
		if !there {
			return refuse(http.StatusNotFound, codeNameUnknown, "repository name not known to registry")
		}
	}
	if more {
		c.next(p, names[len(names)-1])
	}
	return c.writeJSON(map[string]any{"name": repo, "tags": names}, "application/json")
}

func (r *Registry) tagNames(ctx context.Context, repo, after string, fn func(string) error) error {
	return r.d.List(ctx, repositoryKey(repo)+"/"+tagsPart, after, func(tag string, dir bool) error {
		if dir {
			return nil
		}
		return fn(tag)
	})
}

func (c *call) catalog() error {
	p, err := c.page()
	if err != nil {
		return err
	}
	ctx := c.req.Context()
	names, more, err := p.names(func(after string, fn func(string) error) error { return c.r.Repositories(ctx, after, fn) })
	if err != nil {
		return err
	}
	if more {
		c.next(p, names[len(names)-1])
	}
	return c.writeJSON(map[string]any{"repositories": names}, "application/json")
}

// Repositories calls fn with the name of each repository that has a manifest, in the order of the names, from the one after `after`. An error of fn
// ends it and is returned.
func (r *Registry) Repositories(ctx context.Context, after string, fn func(name string) error) error {
	return r.walkRepositories(ctx, "", after, func(name string, parts []string) error {
		if !slices.Contains(parts, manifestsPart) {
			return nil
		}
		return fn(name)
	})
}

// level reads what is directly below a name: the parts of that repository ("_tags"), and the names that go on from there.
func (r *Registry) level(ctx context.Context, name string) (parts, children []string, err error) {
	key := repositoriesKey
	if name != "" {
		key = repositoryKey(name)
	}
	err = r.d.List(ctx, key, "", func(child string, dir bool) error {
		switch {
		case strings.HasPrefix(child, "_"):
			parts = append(parts, child)
		case dir:
			children = append(children, child)
		}
		return nil
	})
	return parts, children, err
}

// walkRepositories calls fn for the repositories below a name, in the order of the full names. The order of a folder is not that: "a-b" comes after "a",
// but before "a/b". So each child takes two turns: as "a", for itself, and as "a/", for all below it.
func (r *Registry) walkRepositories(ctx context.Context, name, after string, fn func(name string, parts []string) error) error {
	_, children, err := r.level(ctx, name)
	if err != nil {
		return err
	}
	turns := make([]string, 0, 2*len(children))
	for _, child := range children {
		turns = append(turns, child, child+"/")
	}
	slices.Sort(turns)
	for _, turn := range turns {
		child, below := strings.CutSuffix(turn, "/")
		full := child
		if name != "" {
			full = name + "/" + child
		}
		switch {
		case below && full+"0" > after: // "0" is what comes after "/": else all below is before
			err = r.walkRepositories(ctx, full, after, fn)
		case !below && full > after:
			err = r.visit(ctx, full, fn)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (r *Registry) visit(ctx context.Context, name string, fn func(name string, parts []string) error) error {
	parts, _, err := r.level(ctx, name)
	if err != nil || len(parts) == 0 {
		return err
	}
	return fn(name, parts)
}

// maxReferrers bounds the bytes of one answer of referrers: clients read no larger manifests.
const maxReferrers = 4<<20 - 4096

// referrers lists what has a manifest as its subject.
func (c *call) referrers() error {
	subject, ok := parseDigest(c.route.ref)
	if !ok {
		return refuse(http.StatusBadRequest, codeDigestInvalid, "invalid or unsupported digest %.150q", c.route.ref)
	}
	p, err := c.page()
	if err != nil {
		return err
	}
	wanted := c.req.URL.Query().Get("artifactType")
	list := ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{}}
	list.SchemaVersion = 2
	bytes := 0
	var last string
	err = c.r.walkReferrers(c.req.Context(), c.route.name, subject, p.last, func(name string, desc ocispec.Descriptor, size int) error {
		if wanted != "" && desc.ArtifactType != wanted {
			return nil
		}
		if len(list.Manifests) > 0 && (len(list.Manifests) >= p.n || bytes+size > maxReferrers) {
			c.next(p, last)
			return errEnough
		}
		list.Manifests = append(list.Manifests, desc)
		bytes += size + 1
		last = name
		return nil
	})
	if err := enough(err); err != nil {
		return err
	}
	if wanted != "" {
		c.w.Header().Set("OCI-Filters-Applied", "artifactType")
	}
	return c.writeJSON(list, ocispec.MediaTypeImageIndex)
}

// walkReferrers calls fn for each referrer in the order of their names, with the length of its JSON. Those that were pushed by a client which knew no
// referrers API stand in an index under a tag made of the digest; they count as far as they are here and really have that subject.
func (r *Registry) walkReferrers(ctx context.Context, repo string, subject digest.Digest, after string,
	fn func(name string, desc ocispec.Descriptor, size int) error,
) error {
	old, err := r.taggedReferrers(ctx, repo, subject)
	if err != nil {
		return err
	}
	flush := func(until string) error {
		for len(old) > 0 && (until == "" || old[0].name < until) {
			first := old[0]
			old = old[1:]
			if first.name <= after {
				continue
			}
			if err := fn(first.name, first.desc, first.size); err != nil {
				return err
			}
		}
		if len(old) > 0 && old[0].name == until {
			old = old[1:]
		}
		return nil
	}
	key := referrersKey(repo, subject)
	err = r.d.List(ctx, key, after, func(name string, dir bool) error {
		raw, err := r.d.Get(ctx, key+"/"+name)
		if isNotFound(err) {
			return nil
		}
		if err != nil {
			return err
		}
		var desc ocispec.Descriptor
		if err := json.Unmarshal(raw, &desc); err != nil {
			r.log.Error("entry of a referrer is damaged", "repository", repo, "subject", subject, "entry", name, "error", err)
			return nil
		}
		if err := flush(name); err != nil {
			return err
		}
		return fn(name, desc, len(raw))
	})
	if err != nil {
		return err
	}
	return flush("")
}

type oldReferrer struct {
	name string
	desc ocispec.Descriptor
	size int
}

// fallbackTag is the referrers tag of a digest (specification, "Referrers Tag Schema"). Our algorithms and encodings are shorter than where it truncates,
// but for sha384 and sha512.
func fallbackTag(subject digest.Digest) string {
	encoded := subject.Encoded()
	return subject.Algorithm().String() + "-" + encoded[:min(len(encoded), 64)]
}

func (r *Registry) taggedReferrers(ctx context.Context, repo string, subject digest.Digest) ([]oldReferrer, error) {
	_, m, err := r.resolveTag(ctx, repo, fallbackTag(subject))
	if isNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	doc, err := parseDocument(m.MediaType, m.raw)
	if err != nil || !manifest.IsIndex(doc.mediaType) {
		return nil, nil // somebody's own tag that looks like one
	}
	var old []oldReferrer
	for _, entry := range doc.manifests {
		referrer, _, err := r.getManifest(ctx, repo, entry.Digest)
		if isNotFound(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		doc, err := parseDocument(referrer.MediaType, referrer.raw)
		if err != nil || doc.subject == nil || doc.subject.Digest != subject {
			continue
		}
		desc := doc.descriptor(entry.Digest, int64(len(referrer.raw)))
		raw, err := json.Marshal(desc)
		if err != nil {
			return nil, err
		}
		old = append(old, oldReferrer{name: referrerName(entry.Digest), desc: desc, size: len(raw)})
	}
	slices.SortFunc(old, func(a, b oldReferrer) int { return strings.Compare(a.name, b.name) })
	return slices.CompactFunc(old, func(a, b oldReferrer) bool { return a.name == b.name }), nil
}
