package access

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	"corten.dev/corten/internal/errs"
)

const maxForm = 64 << 10

// answer is what the token service says: both names of the token, since some clients read one and some the other.
type answer struct {
	Token        string `json:"token"`
	AccessToken  string `json:"access_token"`
	ExpiresIn    int    `json:"expires_in"`
	IssuedAt     string `json:"issued_at"`
	RefreshToken string `json:"refresh_token,omitempty"`
	Scope        string `json:"scope,omitempty"`
}

// ServeHTTP is the token service: GET with Basic or nothing, POST as an OAuth2 form.
func (g *Guard) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	var a answer
	var err error
	switch req.Method {
	case http.MethodGet, http.MethodHead:
		a, err = g.get(req)
	case http.MethodPost:
		req.Body = http.MaxBytesReader(w, req.Body, maxForm)
		a, err = g.post(req)
	default:
		w.Header().Set("Allow", "GET, POST")
		http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	if err != nil {
		g.refuse(w, err)
		return
	}
	_ = json.NewEncoder(w).Encode(a) // who has gone misses it
}

func (g *Guard) refuse(w http.ResponseWriter, err error) {
	status, code := http.StatusInternalServerError, "UNKNOWN"
	var many *TooMany
	switch {
	case errors.As(err, &many):
		status, code = http.StatusTooManyRequests, "TOOMANYREQUESTS"
		w.Header().Set("Retry-After", strconv.Itoa(int(many.RetryAfter/time.Second)+1))
	case errors.Is(err, errs.Unauthorized):
		status, code = http.StatusUnauthorized, "UNAUTHORIZED"
		w.Header().Set("WWW-Authenticate", "Basic realm=\""+g.opts.Service+"\"")
	case errors.Is(err, errs.Invalid):
		status, code = http.StatusBadRequest, "UNSUPPORTED"
	default:
		g.log.Error("token service", "err", err)
	}
	message := "internal error"
	if status != http.StatusInternalServerError {
		message = err.Error()
	}
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"errors": []map[string]string{{"code": code, "message": message}}})
}

func (g *Guard) get(req *http.Request) (answer, error) {
	q := req.URL.Query()
	if s := q.Get("service"); s != "" && s != g.opts.Service {
		return answer{}, errs.New(errs.Invalid, "this is the token service of %q", g.opts.Service)
	}
	var id Identity
	if header := req.Header.Get("Authorization"); header != "" {
		proof, ok := strings.CutPrefix(header, "Basic ")
		if !ok {
			return answer{}, errs.New(errs.Unauthorized, "the token service takes a user and a password")
		}
		var err error
		if id, err = g.basic(req.Context(), proof); err != nil {
			return answer{}, err
		}
	}
	offline := q.Get("offline_token") == "true" || q.Get("access_type") == "offline"
	return g.issue(id.User, q["scope"], offline)
}

func (g *Guard) post(req *http.Request) (answer, error) {
	if err := req.ParseForm(); err != nil {
		return answer{}, errs.New(errs.Invalid, "the form cannot be read")
	}
	form := req.PostForm
	if s := form.Get("service"); s != "" && s != g.opts.Service {
		return answer{}, errs.New(errs.Invalid, "this is the token service of %q", g.opts.Service)
	}
	var user string
	switch grant := form.Get("grant_type"); grant {
	case "password":
		id, err := g.login(req.Context(), form.Get("username"), form.Get("password"))
		if err != nil {
			return answer{}, err
		}
		user = id.User
	case "refresh_token":
		old := form.Get("refresh_token")
		c, err := g.opts.Keys.verify(old, refreshToken, g.opts.Service, g.opts.Now())
		if err != nil {
			return answer{}, err
		}
		hash, ok := g.opts.Users.hash(c.Subject)
		if !ok || !sameText(c.Login, fingerprint(hash)) {
			return answer{}, errs.New(errs.Unauthorized, "token: the password has changed since: log in again")
		}
		a, err := g.issue(c.Subject, form["scope"], false)
		a.RefreshToken = old // the same one goes on until its end: clients keep what they get
		return a, err
	default:
		return answer{}, errs.New(errs.Invalid, "grant type %q: this service knows password and refresh_token", grant)
	}
	return g.issue(user, form["scope"], form.Get("access_type") == "offline")
}

// issue signs a token for what the user may of what was asked.
func (g *Guard) issue(user string, params []string, offline bool) (answer, error) {
	wanted, err := ParseScopes(params)
	if err != nil {
		return answer{}, err
	}
	now := g.opts.Now()
	c := claims{
		Issuer: g.opts.Service, Audience: g.opts.Service, Subject: user, ID: rand.Text(), Use: accessToken,
		Issued: now.Unix(), NotBefore: now.Unix(), Expires: now.Add(g.opts.TokenLife).Unix(),
		Access: g.opts.Rights.grant(user, wanted),
	}
	token, err := g.opts.Keys.sign(c)
	if err != nil {
		return answer{}, err
	}
	a := answer{
		Token: token, AccessToken: token, ExpiresIn: int(g.opts.TokenLife / time.Second), IssuedAt: now.UTC().Format(time.RFC3339), Scope: scopeText(c.Access),
	}
	if !offline || user == "" {
		return a, nil
	}
	hash, ok := g.opts.Users.hash(user)
	if !ok {
		return answer{}, errs.New(errs.Unauthorized, "incorrect username or password")
	}
	c.Use, c.Access, c.ID, c.Login = refreshToken, nil, rand.Text(), fingerprint(hash)
	c.Expires = now.Add(g.opts.RefreshLife).Unix()
	a.RefreshToken, err = g.opts.Keys.sign(c)
	return a, err
}

func scopeText(scopes []Scope) string {
	words := make([]string, 0, len(scopes))
	for _, s := range scopes {
		actions := make([]string, 0, len(s.Actions))
		for _, a := range s.Actions {
			actions = append(actions, string(a))
		}
		words = append(words, s.Type+":"+s.Name+":"+strings.Join(actions, ","))
	}
	return strings.Join(words, " ")
}

// fingerprint tells one stored password from the next, and nothing about either: bcrypt hashes are salted.
func fingerprint(hash string) string {
	sum := sha256.Sum256([]byte("corten registry login\x00" + hash))
	return hex.EncodeToString(sum[:16])
}
