package server

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"runtime"
	"strings"

	wire "github.com/moby/moby/api/types/image"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"corten.dev/corten/internal/engine/images"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/image"
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
	return ok(w, out)
}

// imageFor finds the image of the route, and checks the platform that newer clients may ask for.
func (s *Server) imageFor(r *request, since int) (image.Image, error) {
	img, err := s.Images.Inspect(r.Context(), r.id())
	if err != nil || r.version < since || !r.query.has("platform") {
		return img, err
	}
	return img, matchPlatform(img, r.id(), r.query["platform"])
}

// matchPlatform refuses a platform (JSON, as OCI writes it) that an image is not for. Images here are for one platform each.
func matchPlatform(img image.Image, ref string, wanted []string) error {
	for _, text := range wanted {
		var p ocispec.Platform
		if err := json.Unmarshal([]byte(text), &p); err != nil {
			return errs.New(errs.Invalid, "invalid platform: %w", err)
		}
		if p.OS == img.Config.OS && p.Architecture == img.Config.Architecture && (p.Variant == "" || p.Variant == img.Config.Variant) {
			return nil
		}
	}
	return errs.New(errs.NotFound, "image %s is for platform %s/%s, not for %s", ref, img.Config.OS, img.Config.Architecture, strings.Join(wanted, ", "))
}

func (s *Server) imageHistory(w http.ResponseWriter, r *request) error {
	if _, err := s.imageFor(r, 48); err != nil {
		return err
	}
	history, err := s.Images.History(r.Context(), r.id())
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
	if wanted := r.query["platforms"]; r.version >= 50 && len(wanted) > 0 {
		img, err := s.Images.Inspect(r.Context(), r.id())
		if err != nil {
			return err
		}
		if err := matchPlatform(img, r.id(), wanted); err != nil {
			return err
		}
	}
	removed, err := s.Images.Remove(r.steady(), r.id(), r.query.flag("force"), !r.query.flag("noprune"))
	if err != nil {
		return err
	}
	return ok(w, removedImages(removed))
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
	if wanted := r.query["platform"]; r.version >= 48 && len(wanted) > 0 {
		for _, ref := range refs {
			img, err := s.Images.Inspect(r.Context(), ref)
			if err != nil {
				return err
			}
			if err := matchPlatform(img, ref, wanted); err != nil {
				return err
			}
		}
	}
	var without []digest.Digest
	for _, c := range r.query["without"] {
		without = append(without, digest.Digest(c))
	}
	out := &lazyStream{w: w, contentType: "application/x-tar"}
	return out.finish(s.Images.Save(r.Context(), refs, without, out))
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
	if wanted := r.query["platform"]; r.version >= 48 && len(wanted) > 0 {
		host := image.Image{Config: image.Config{OS: "linux", Architecture: runtime.GOARCH}}
		if err := matchPlatform(host, "", wanted); err != nil {
			return errs.New(errs.NotImplemented, "loading an image for another platform than this host's (linux/%s) is not part of this version", runtime.GOARCH)
		}
	}
	// Progress is sent while the archive still comes in.
	if err := duplex(w); err != nil {
		return err
	}
	out := newProgress(w, r.query.flagOr("quiet", true))
	names, err := s.Images.Load(r.Context(), r.Body, out.update)
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

// duplex lets the answer begin before the body has ended.
func duplex(w http.ResponseWriter) error {
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
