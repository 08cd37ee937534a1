package serve

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/registry/server"
	"corten.dev/corten/internal/registry/server/access"
)

// searchResult is one line of the v1 search API, as `docker search` reads it.
type searchResult struct {
	Name        string `json:"name"`
	Description string `json:"description"`
	Stars       int    `json:"star_count"`
	Official    bool   `json:"is_official"`
	Automated   bool   `json:"is_automated"`
}

type searchAnswer struct {
	Query    string         `json:"query"`
	Count    int            `json:"num_results"`
	Pages    int            `json:"num_pages"`
	Page     int            `json:"page"`
	PageSize int            `json:"page_size"`
	Results  []searchResult `json:"results"`
}

const (
	defaultPage = 25
	maxPage     = 100
	maxFound    = 10000 // matches that are ranked
)

var errEnough = errors.New("enough")

// search answers /v1/search with the repositories that the asker may pull from.
type search struct {
	guard        *guarding
	repositories func(ctx context.Context, after string, fn func(name string) error) error
	log          interface {
		Error(msg string, args ...any)
	}
}

func (s *search) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	may := func(string) bool { return true }
	if s.guard != nil {
		header := req.Header.Get("Authorization")
		id, err := s.guard.guard.Identify(req.Context(), header)
		if err == nil && header == "" && !s.guard.rights.AnyonePulls() {
			// An empty list would be believed: podman asks this first, without a user, and the catalogue only where this is refused.
			err = errs.New(errs.Unauthorized, "authentication required")
		}
		if err != nil {
			s.refuse(w, req, err)
			return
		}
		may = func(repo string) bool { return s.guard.guard.May(id, repo, server.Pull) }
	}
	q := req.URL.Query()
	term := strings.ToLower(strings.TrimSpace(q.Get("q")))
	size := clamp(q.Get("n"), defaultPage, 1, maxPage)
	page := clamp(q.Get("page"), 1, 1, maxFound)
	var found []string
	err := s.repositories(req.Context(), "", func(name string) error {
		if strings.Contains(name, term) && may(name) {
			if found = append(found, name); len(found) >= maxFound {
				return errEnough
			}
		}
		return nil
	})
	if err != nil && !errors.Is(err, errEnough) {
		if req.Context().Err() == nil {
			s.log.Error("search", "err", err)
		}
		writeProblem(w, http.StatusInternalServerError, "UNKNOWN", "internal error")
		return
	}
	rank(found, term)
	a := searchAnswer{Query: q.Get("q"), Count: len(found), Pages: (len(found) + size - 1) / size, Page: page, PageSize: size, Results: []searchResult{}}
	from := min((page-1)*size, len(found))
	for _, name := range found[from:min(from+size, len(found))] {
		a.Results = append(a.Results, searchResult{Name: name})
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(a) // who has gone misses it
}

func (s *search) refuse(w http.ResponseWriter, req *http.Request, err error) {
	var many *access.TooMany
	switch {
	case errors.As(err, &many):
		w.Header().Set("Retry-After", strconv.Itoa(int(many.RetryAfter.Seconds())+1))
		writeProblem(w, http.StatusTooManyRequests, "TOOMANYREQUESTS", err.Error())
	case errors.Is(err, errs.Unauthorized):
		w.Header().Set("WWW-Authenticate", s.guard.guard.Challenge(req.Host, "", server.Catalog))
		writeProblem(w, http.StatusUnauthorized, "UNAUTHORIZED", err.Error())
	default:
		s.log.Error("search", "err", err)
		writeProblem(w, http.StatusInternalServerError, "UNKNOWN", "internal error")
	}
}

// rank puts the name itself first, then what begins with it, then the rest, shorter names before longer ones.
func rank(names []string, term string) {
	class := func(name string) int {
		last := name[strings.LastIndexByte(name, '/')+1:]
		switch {
		case name == term || last == term:
			return 0
		case strings.HasPrefix(name, term) || strings.HasPrefix(last, term):
			return 1
		}
		return 2
	}
	slices.SortStableFunc(names, func(a, b string) int {
		if c := class(a) - class(b); c != 0 {
			return c
		}
		if c := len(a) - len(b); c != 0 && term != "" {
			return c
		}
		return strings.Compare(a, b)
	})
}

func clamp(s string, otherwise, low, high int) int {
	n, err := strconv.Atoi(s)
	if err != nil {
		return otherwise
	}
	return min(max(n, low), high)
}

// ping answers /v1/_ping, which docker asks before it searches. "Standalone" lets it send a user and a password with the search.
func ping(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("X-Docker-Registry-Standalone", "true")
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write([]byte("true"))
}

func writeProblem(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"errors": []map[string]string{{"code": code, "message": message}}})
}
