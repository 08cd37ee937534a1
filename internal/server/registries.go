package server

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"strings"

	"github.com/moby/moby/api/types/jsonstream"
	wire "github.com/moby/moby/api/types/registry"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"corten.dev/corten/internal/engine/images"
	"corten.dev/corten/internal/errs"
)

// registryRoutes are what is asked of registries. /corten/ is ours: what Docker's API has no word for.
func (s *Server) registryRoutes() []entry {
	return []entry{
		{"POST /auth", s.auth},
		{"GET /images/search", s.imagesSearch},
		{"POST /images/**/push", s.imagePush},
		{"GET /distribution/**/json", s.distribution},
		{"GET /corten/tags/**", s.remoteTags},
	}
}

// maxAuth bounds the header that credentials come in.
const maxAuth = 64 << 10

// credentials reads X-Registry-Auth: JSON in base64, with or without padding, in either alphabet. Errors never repeat what was sent.
func (s *Server) credentials(r *request) (images.Credentials, error) {
	var creds images.Credentials
	header := strings.TrimRight(r.Header.Get(wire.AuthHeader), "=")
	if header == "" {
		return creds, nil
	}
	if len(header) > maxAuth {
		return creds, errs.New(errs.Invalid, "invalid X-Registry-Auth header: it is too long")
	}
	raw, err := base64.RawURLEncoding.DecodeString(strings.NewReplacer("+", "-", "/", "_").Replace(header))
	if err != nil {
		return creds, errs.New(errs.Invalid, "invalid X-Registry-Auth header: it is not base64")
	}
	var auth wire.AuthConfig
	if err := json.Unmarshal(raw, &auth); err != nil {
		return creds, errs.New(errs.Invalid, "invalid X-Registry-Auth header: it is not JSON")
	}
	if s.DefaultRegistry != "" && strings.TrimRight(auth.ServerAddress, "/") == strings.TrimRight(hubIndex, "/") {
		return creds, nil // they are for Docker Hub, which is not where the name leads
	}
	return fromAuth(auth)
}

// hubIndex is the name that credentials for Docker Hub are kept under.
const hubIndex = "https://index.docker.io/v1/"

// fromAuth takes the pair out of "auth" where a client sends it that way.
func fromAuth(auth wire.AuthConfig) (images.Credentials, error) {
	if auth.Username == "" && auth.Password == "" && auth.Auth != "" {
		pair, err := base64.StdEncoding.DecodeString(auth.Auth)
		user, password, ok := strings.Cut(string(pair), ":")
		if err != nil || !ok {
			return images.Credentials{}, errs.New(errs.Invalid, "invalid credentials: \"auth\" is not user:password in base64")
		}
		auth.Username, auth.Password = user, strings.TrimRight(password, "\x00")
	}
	return images.Credentials{Username: auth.Username, Password: auth.Password, IdentityToken: auth.IdentityToken, RegistryToken: auth.RegistryToken}, nil
}

func (s *Server) auth(w http.ResponseWriter, r *request) error {
	var auth wire.AuthConfig
	if err := readJSON(r.Request, &auth); err != nil {
		return err
	}
	creds, err := fromAuth(auth)
	if err != nil {
		return err
	}
	token, err := s.Registries.Login(r.Context(), auth.ServerAddress, creds)
	if err != nil {
		return err
	}
	return ok(w, wire.AuthResponse{Status: "Login Succeeded", IdentityToken: token})
}

func (s *Server) imagesSearch(w http.ResponseWriter, r *request) error {
	filters, err := r.query.filters()
	if err != nil {
		return err
	}
	limit, err := r.query.number("limit")
	if err != nil {
		return err
	}
	creds, err := s.credentials(r)
	if err != nil {
		return err
	}
	term := r.query.get("term")
	if term == "" {
		return errs.New(errs.Invalid, "no term to search for")
	}
	found, err := s.Registries.Search(r.Context(), term, images.SearchOptions{Limit: limit, Filters: filters, Credentials: creds})
	if err != nil {
		return err
	}
	out := make([]wire.SearchResult, len(found))
	for i, f := range found {
		//lint:ignore SA1019 older clients still show it
		out[i] = wire.SearchResult{Name: f.Name, Description: f.Description, StarCount: f.Stars, IsOfficial: f.Official, IsAutomated: f.Automated}
	}
	return ok(w, out)
}

func (s *Server) distribution(w http.ResponseWriter, r *request) error {
	creds, err := s.credentials(r)
	if err != nil {
		return err
	}
	remote, err := s.Registries.Distribution(r.Context(), r.id(), creds)
	if err != nil {
		return err
	}
	out := wire.DistributionInspect{Descriptor: remote.Descriptor, Platforms: remote.Platforms}
	if out.Platforms == nil {
		out.Platforms = []ocispec.Platform{}
	}
	return ok(w, out)
}

// remoteTags answers with the form that registries use themselves.
func (s *Server) remoteTags(w http.ResponseWriter, r *request) error {
	creds, err := s.credentials(r)
	if err != nil {
		return err
	}
	tags, err := s.Registries.Tags(r.Context(), r.id(), creds)
	if err != nil {
		return err
	}
	return ok(w, struct {
		Name string   `json:"name"`
		Tags []string `json:"tags"`
	}{r.id(), orEmpty(tags)})
}

// pull is the half of /images/create that asks a registry. Without a tag it means all of them.
func (s *Server) pull(w http.ResponseWriter, r *request, name string) error {
	creds, err := s.credentials(r)
	if err != nil {
		return err
	}
	ref := imageName(name, r.query.get("tag"))
	last := ref[strings.LastIndexByte(ref, '/')+1:]
	opts := images.PullOptions{
		Ref: ref, AllTags: !strings.ContainsAny(last, ":@"), Platform: r.query.get("platform"), AllPlatforms: r.query.flag("allplatforms"), Credentials: creds,
	}
	ctx, cancel := s.endless(r)
	defer cancel()
	out := newProgress(w, false)
	return out.finish(s.Registries.Pull(ctx, opts, out.report))
}

func (s *Server) imagePush(w http.ResponseWriter, r *request) error {
	creds, err := s.credentials(r)
	if err != nil {
		return err
	}
	opts := images.PushOptions{Ref: imageName(r.id(), r.query.get("tag")), AllTags: r.query.get("tag") == "", Compression: r.query.get("compression"), Credentials: creds}
	if last := r.id()[strings.LastIndexByte(r.id(), '/')+1:]; strings.ContainsAny(last, ":@") {
		opts.AllTags = false
	}
	if text := r.query.get("platform"); text != "" && r.version >= 46 {
		p, err := platform(text)
		if err != nil {
			return err
		}
		opts.Platform = p.String()
	}
	ctx, cancel := s.endless(r)
	defer cancel()
	out := newProgress(w, false)
	return out.finish(s.Registries.Push(ctx, opts, out.report))
}

// report sends one step of a pull or push.
func (p *progress) report(r images.Report) {
	switch {
	case r.Pushed != nil:
		aux, err := json.Marshal(struct {
			Tag, Digest string
			Size        int
		}{r.Pushed.Tag, r.Pushed.Digest, r.Pushed.Size})
		if err != nil {
			return // two strings and a number: it cannot be
		}
		raw := json.RawMessage(aux)
		p.send(message{Message: jsonstream.Message{Progress: &jsonstream.Progress{}, Aux: &raw}})
	case r.Layer:
		p.update(r.ID, r.Status, r.Current, r.Total)
	default:
		p.status(r.ID, r.Status)
	}
}
