package access

import (
	"crypto/ed25519"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"slices"
	"strings"
	"time"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/registry/server"
)

// A token is a JSON Web Token of one kind only: header {"alg":"EdDSA","kid":…,"typ":"JWT"}, claims as below, an Ed25519 signature.
const (
	accessToken  = "access"
	refreshToken = "refresh"
	maxToken     = 16 << 10
	leeway       = 30 * time.Second // between the clocks of registries that share keys
)

// Scope is what a token is good for (distribution token "access" claim).
type Scope struct {
	Type    string          `json:"type"`
	Name    string          `json:"name"`
	Actions []server.Action `json:"actions"`
}

type header struct {
	Algorithm string `json:"alg"`
	KeyID     string `json:"kid"`
	Type      string `json:"typ"`
}

type claims struct {
	Issuer    string  `json:"iss"`
	Subject   string  `json:"sub"`
	Audience  string  `json:"aud"`
	Expires   int64   `json:"exp"`
	NotBefore int64   `json:"nbf"`
	Issued    int64   `json:"iat"`
	ID        string  `json:"jti"`
	Use       string  `json:"use"` // access or refresh: one never passes for the other
	Access    []Scope `json:"access,omitempty"`
	// Login ties a refresh token to the password it was given for.
	Login string `json:"login,omitempty"`
}

func (k *Keys) sign(c claims) (string, error) {
	one := k.newest()
	if one == nil {
		return "", errs.New(errs.Unavailable, "there is no signing key")
	}
	head, err := json.Marshal(header{Algorithm: "EdDSA", KeyID: one.id, Type: "JWT"})
	if err != nil {
		return "", err
	}
	body, err := json.Marshal(c)
	if err != nil {
		return "", err
	}
	signed := base64.RawURLEncoding.EncodeToString(head) + "." + base64.RawURLEncoding.EncodeToString(body)
	return signed + "." + base64.RawURLEncoding.EncodeToString(ed25519.Sign(one.private, []byte(signed))), nil
}

// verify believes nothing of a token before its signature is ours. The reasons are for us; a client that guesses learns nothing from them.
func (k *Keys) verify(token, use, service string, now time.Time) (claims, error) {
	var c claims
	refused := func(why string) (claims, error) { return claims{}, errs.New(errs.Unauthorized, "token: %s", why) }
	if len(token) > maxToken {
		return refused("too long")
	}
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return refused("malformed")
	}
	strict := base64.RawURLEncoding.Strict()
	head, err1 := strict.DecodeString(parts[0])
	body, err2 := strict.DecodeString(parts[1])
	sig, err3 := strict.DecodeString(parts[2])
	var h header
	if err1 != nil || err2 != nil || err3 != nil || json.Unmarshal(head, &h) != nil {
		return refused("malformed")
	}
	if h.Algorithm != "EdDSA" {
		return refused("signed by another algorithm than ours")
	}
	one := k.find(h.KeyID)
	if one == nil {
		return refused("signed by an unknown key")
	}
	if !ed25519.Verify(one.private.Public().(ed25519.PublicKey), []byte(parts[0]+"."+parts[1]), sig) {
		return refused("the signature is wrong")
	}
	if json.Unmarshal(body, &c) != nil {
		return refused("malformed")
	}
	switch {
	case c.Use != use:
		return refused("not of this kind")
	case c.Audience != service || c.Issuer != service:
		return refused("for another service")
	case !now.Before(time.Unix(c.Expires, 0)):
		return refused("expired")
	case now.Before(time.Unix(c.NotBefore, 0).Add(-leeway)):
		return refused("not valid yet")
	}
	return c, nil
}

// sameText compares secrets in constant time.
func sameText(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }

// covers tells whether a token's scopes have an action.
func covers(scopes []Scope, repository string, action server.Action) bool {
	kind, name := "repository", repository
	if repository == "" {
		kind, name = "registry", string(server.Catalog)
	}
	return slices.ContainsFunc(scopes, func(s Scope) bool {
		return s.Type == kind && s.Name == name && (slices.Contains(s.Actions, action) || kind == "registry" && slices.Contains(s.Actions, "*"))
	})
}

const maxScopes = 64 // of one request

// ParseScopes reads scope parameters ("repository:a/b:pull,push registry:catalog:*"). What is not understood is left out, as the protocol wants: it is not granted.
func ParseScopes(params []string) ([]Scope, error) {
	var all []Scope
	for _, param := range params {
		for word := range strings.FieldsSeq(param) {
			if len(all) >= maxScopes {
				return nil, errs.New(errs.Invalid, "more than %d scopes", maxScopes)
			}
			if s, ok := parseScope(word); ok {
				all = append(all, s)
			}
		}
	}
	return all, nil
}

func parseScope(word string) (Scope, bool) {
	kind, rest, ok := strings.Cut(word, ":")
	kind, _, _ = strings.Cut(kind, "(") // repository(plugin)
	i := strings.LastIndexByte(rest, ':')
	if !ok || i < 0 {
		return Scope{}, false
	}
	s := Scope{Type: kind, Name: rest[:i]}
	for a := range strings.SplitSeq(rest[i+1:], ",") {
		if action := server.Action(a); !slices.Contains(s.Actions, action) && len(s.Actions) < 8 && a != "" {
			s.Actions = append(s.Actions, action)
		}
	}
	switch kind {
	case "repository":
		return s, checkName(s.Name) == nil
	case "registry":
		return s, s.Name == string(server.Catalog)
	}
	return Scope{}, false
}

// grant cuts scopes down to what a user may.
func (r *Rights) grant(user string, wanted []Scope) []Scope {
	granted := []Scope{}
	for _, s := range wanted {
		given := Scope{Type: s.Type, Name: s.Name}
		if s.Type == "registry" {
			if r.May(user, "", server.Catalog) {
				given.Actions = []server.Action{"*"}
			}
		} else {
			for _, a := range []server.Action{server.Pull, server.Push, server.Delete} {
				if (slices.Contains(s.Actions, a) || slices.Contains(s.Actions, "*")) && r.May(user, s.Name, a) {
					given.Actions = append(given.Actions, a)
				}
			}
		}
		if len(given.Actions) > 0 {
			granted = append(granted, given)
		}
	}
	return granted
}
