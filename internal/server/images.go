package server

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"

	wire "github.com/moby/moby/api/types/image"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"corten.dev/corten/internal/engine/images"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/image"
	"corten.dev/corten/internal/manifest"
)

func (s *Server) imageRoutes() []entry {
	return []entry{
		{"GET /images/json", s.imagesList},
		{"GET /images/get", s.imagesGet},
		{"GET /images/**/get", s.imagesGet},
		{"GET /images/**/history", s.imageHistory},
		{"GET /images/**/json", s.imageInspect},
		{"GET /images/**/attestations", s.imageAttestations},
		{"POST /images/load", s.imagesLoad},
		{"POST /corten/chains", s.chainsHave},
		{"POST /images/create", s.imagesCreate},
		{"POST /images/prune", s.imagesPrune},
		{"POST /images/**/tag", s.imageTag},
		{"DELETE /images/**", s.imageRemove},
	}
}

// imageName joins repo and tag; either may be empty.
func imageName(repo, tag string) string {
	switch {
	case repo == "" || tag == "":
		return repo
	case strings.Contains(tag, ":"):
		return repo + "@" + tag
	}
	return repo + ":" + tag
}

func (s *Server) imagesList(w http.ResponseWriter, r *request) error {
	filters, err := r.query.filters()
	if err != nil {
		return err
	}
	if old := r.query.get("filter"); old != "" && r.version < 41 {
		if filters == nil {
			filters = map[string][]string{}
		}
		filters["reference"] = append(filters["reference"], old)
	}
	list, err := s.Images.List(r.Context(), images.ListOptions{All: r.query.flag("all"), Filters: filters})
	if err != nil {
		return err
	}
	var shared map[string]int64
	if r.version >= 42 && r.query.flag("shared-size") {
		if shared, err = s.sharedSizes(r.Context(), list); err != nil {
			return err
		}
	}
	out := make([]imageSummary, len(list))
	for i := range list {
		out[i] = imageLine(list[i], shared, r.version)
		if r.version >= 47 && r.query.flag("manifests") {
			if out[i].Manifests, err = s.imageManifests(r, list[i].ID); errors.Is(err, errs.NotFound) { // removed meanwhile
				err = nil
			}
			if err != nil {
				return err
			}
		}
	}
	return ok(w, out)
}

func (s *Server) imageInspect(w http.ResponseWriter, r *request) error {
	if r.version >= 49 && r.query.flag("manifests") && r.query.has("platform") {
		return errs.New(errs.Invalid, "conflicting options: manifests and platform options cannot both be set")
	}
	img, err := s.imageFor(r, 49)
	if err != nil {
		return err
	}
	driver, err := s.layerData(img)
	if err != nil {
		return err
	}
	out, err := imageInspection(img, driver, r.version)
	if err != nil {
		return err
	}
	if r.version >= 48 && r.query.flag("manifests") {
		list, err := s.imageManifests(r, img.ID)
		if err != nil {
			return err
		}
		if len(list) > 0 {
			out["Manifests"] = list
		}
	}
	return ok(w, out)
}

// imageFor finds the image of the route; newer clients may say for which platform.
func (s *Server) imageFor(r *request, since int) (image.Image, error) {
	var p manifest.Platform
	if wanted := r.query["platform"]; r.version >= since && len(wanted) > 0 {
		var err error
		if p, err = platform(wanted[0]); err != nil {
			return image.Image{}, err
		}
	}
	return s.Images.InspectFor(r.Context(), r.id(), p)
}

// platforms reads platforms in JSON, as OCI writes them.
func platforms(texts []string) (list []manifest.Platform, err error) {
	for _, text := range texts {
		p, err := platform(text)
		if err != nil {
			return nil, err
		}
		list = append(list, p)
	}
	return list, nil
}

func platform(text string) (manifest.Platform, error) {
	var p ocispec.Platform
	if err := json.Unmarshal([]byte(text), &p); err != nil {
		return manifest.Platform{}, errs.New(errs.Invalid, "invalid platform: %w", err)
	}
	if p.OS == "" || p.Architecture == "" {
		return manifest.Platform{}, errs.New(errs.Invalid, "invalid platform: both os and architecture must be given")
	}
	words := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		words += "/" + p.Variant
	}
	return manifest.ParsePlatform(words)
}

func (s *Server) imageHistory(w http.ResponseWriter, r *request) error {
	img, err := s.imageFor(r, 48)
	if err != nil {
		return err
	}
	history, err := s.Images.History(r.Context(), img.ID.String())
	if err != nil {
		return err
	}
	out := make([]wire.HistoryResponseItem, len(history))
	for i, h := range history {
		out[i] = wire.HistoryResponseItem{ID: h.ID, CreatedBy: h.CreatedBy, Comment: h.Comment, Size: h.Size, Tags: h.Tags}
		if !h.Created.IsZero() {
			out[i].Created = h.Created.Unix()
		}
	}
	return ok(w, out)
}

// imageAttestations has nothing to tell: attestations are not kept with an image here.
func (s *Server) imageAttestations(w http.ResponseWriter, r *request) error {
	if _, err := s.imageFor(r, 55); err != nil {
		return err
	}
	return ok(w, []struct{}{})
}

func (s *Server) imageTag(w http.ResponseWriter, r *request) error {
	repo := r.query.get("repo")
	if repo == "" {
		return errs.New(errs.Invalid, "invalid reference format: repository name is empty")
	}
	if err := s.Images.Tag(r.steady(), r.id(), imageName(repo, r.query.get("tag"))); err != nil {
		return err
	}
	w.WriteHeader(http.StatusCreated)
	return nil
}

func (s *Server) imageRemove(w http.ResponseWriter, r *request) error {
	if texts := r.query["platforms"]; r.version >= 50 && len(texts) > 0 {
		return s.imageRemoveFor(w, r, texts)
	}
	removed, err := s.Images.Remove(r.steady(), r.id(), r.query.flag("force"), !r.query.flag("noprune"))
	if err != nil {
		return err
	}
	return ok(w, removedImages(removed))
}

func (s *Server) imageRemoveFor(w http.ResponseWriter, r *request, texts []string) error {
	wanted, err := platforms(texts)
	if err != nil {
		return err
	}
	for _, p := range wanted { // before anything is removed
		if _, err := s.Images.InspectFor(r.Context(), r.id(), p); err != nil {
			return err
		}
	}
	out := []wire.DeleteResponse{}
	for _, p := range wanted {
		removed, err := s.Images.RemoveFor(r.steady(), r.id(), p, r.query.flag("force"))
		if err != nil {
			return err
		}
		out = append(out, removedImages(removed)...)
	}
	return ok(w, out)
}

func removedImages(list []image.Removed) []wire.DeleteResponse {
	out := []wire.DeleteResponse{}
	for _, one := range list {
		out = append(out, wire.DeleteResponse{Deleted: one.Deleted, Untagged: one.Untagged})
	}
	return out
}

func (s *Server) imagesPrune(w http.ResponseWriter, r *request) error {
	filters, err := r.query.filters()
	if err != nil {
		return err
	}
	pruned, err := s.Images.Prune(r.steady(), filters)
	if err != nil {
		return err
	}
	out := wire.PruneReport{SpaceReclaimed: uint64(max(pruned.Space, 0))}
	if len(pruned.Removed) > 0 {
		out.ImagesDeleted = removedImages(pruned.Removed)
	}
	return ok(w, out)
}

func (s *Server) imagesGet(w http.ResponseWriter, r *request) error {
	refs := r.vars
	for _, names := range r.query["names"] {
		refs = append(refs, strings.Split(names, ",")...)
	}
	if len(refs) == 0 {
		return errs.New(errs.Invalid, "no image named: give names=")
	}
	var opts images.SaveOptions
	if r.version >= 48 {
		var err error
		if opts.Platforms, err = platforms(r.query["platform"]); err != nil {
			return err
		}
	}
	for _, c := range r.query["without"] {
		opts.Without = append(opts.Without, digest.Digest(c))
	}
	out := &lazyStream{w: w, contentType: "application/x-tar"}
	return out.finish(s.Images.Save(r.Context(), refs, opts, out))
}

// maxChains bounds a question for chains: more than all layers of a good number of images.
const maxChains = 10_000

// chainsHave tells which chains of layers are here, so that an archive for this engine can leave them out. It is ours: docker has no word for it.
func (s *Server) chainsHave(w http.ResponseWriter, r *request) error {
	var ask struct{ Chains []digest.Digest }
	if err := readJSON(r.Request, &ask); err != nil {
		return err
	}
	if len(ask.Chains) > maxChains {
		return errs.New(errs.Invalid, "%d chains are more than %d", len(ask.Chains), maxChains)
	}
	have, err := s.Images.Have(r.Context(), ask.Chains)
	if err != nil {
		return err
	}
	return ok(w, struct{ Have []digest.Digest }{have})
}

func (s *Server) imagesLoad(w http.ResponseWriter, r *request) error {
	var wanted []manifest.Platform
	if r.version >= 48 {
		var err error
		if wanted, err = platforms(r.query["platform"]); err != nil {
			return err
		}
	}
	// Progress is sent while the archive still comes in.
	if err := duplex(w); err != nil {
		return err
	}
	out := newProgress(w, r.query.flagOr("quiet", true))
	names, err := s.Images.Load(r.Context(), r.Body, wanted, out.update)
	for _, name := range names {
		if strings.HasPrefix(name, "sha256:") {
			out.say("Loaded image ID: " + name + "\n")
		} else {
			out.say("Loaded image: " + name + "\n")
		}
	}
	return out.finish(err)
}

func (s *Server) imagesCreate(w http.ResponseWriter, r *request) error {
	if name := r.query.get("fromImage"); name != "" {
		return s.pull(w, r, name)
	}
	src := r.query.get("fromSrc")
	if src == "" {
		return errs.New(errs.Invalid, "no source: give fromSrc or fromImage")
	}
	if err := duplex(w); err != nil {
		return err
	}
	out := newProgress(w, false)
	body := io.ReadCloser(r.Body)
	if src != "-" {
		var err error
		if body, err = fetch(r, src, out); err != nil {
			return out.finish(err)
		}
		defer body.Close()
	}
	img, err := s.Images.Import(r.Context(), body, image.ImportOptions{
		Ref: imageName(r.query.get("repo"), r.query.get("tag")), Message: r.query.get("message"), Changes: r.query["changes"], Platform: r.query.get("platform"),
	})
	if err == nil {
		out.status("", img.ID.String())
	}
	return out.finish(err)
}

// duplex lets the answer begin before the body has ended. The connection is not used again: where the answer is over before the body, net/http reads the rest of it when it no longer
// expects that to end, and panics at the next request.
func duplex(w http.ResponseWriter) error {
	w.Header().Set("Connection", "close")
	err := http.NewResponseController(w).EnableFullDuplex()
	if errors.Is(err, http.ErrNotSupported) { // not a connection of ours, and not in need of it
		return nil
	}
	return err
}

// fetch opens an archive by its address.
func fetch(r *request, src string, out *progress) (io.ReadCloser, error) {
	if !strings.Contains(src, "://") {
		src = "http://" + src
	}
	u, err := url.Parse(src)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, errs.New(errs.Invalid, "invalid address to import from: %q", src)
	}
	req, err := http.NewRequestWithContext(r.Context(), http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, errs.New(errs.Invalid, "invalid address to import from: %w", err)
	}
	out.status("", "Downloading from "+u.Redacted())
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, errs.New(errs.Unavailable, "download the archive: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		_ = resp.Body.Close()
		return nil, errs.New(errs.Invalid, "download %s: the server answered %s", u.Redacted(), resp.Status)
	}
	return &counted{ReadCloser: resp.Body, total: max(resp.ContentLength, 0), out: out}, nil
}

// counted shows how far a download is.
type counted struct {
	io.ReadCloser
	out               *progress
	read, told, total int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	c.read += int64(n)
	if c.read-c.told >= 512<<10 || err == io.EOF {
		c.told = c.read
		c.out.update("", "Downloading", c.read, c.total)
	}
	return n, err
}
