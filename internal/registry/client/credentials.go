package client

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"strings"

	"corten.dev/corten/internal/errs"
)

// readCredentials finds a host's user in a file of the form of docker's config.json. No error shows what stands in it.
func readCredentials(path, place string) (Credentials, error) {
	u, err := url.Parse(place)
	if err != nil {
		return Credentials{}, errs.New(errs.Invalid, "mirror is not a URL")
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return Credentials{}, fmt.Errorf("credentials of %s: %w", u.Host, err)
	}
	var file struct {
		Auths map[string]struct {
			Auth     string `json:"auth"`
			Identity string `json:"identitytoken"`
			Registry string `json:"registrytoken"`
		} `json:"auths"`
	}
	if json.Unmarshal(raw, &file) != nil {
		return Credentials{}, errs.New(errs.Invalid, "credentials of %s: %s is not in the form of docker's config.json", u.Host, path)
	}
	for name, entry := range file.Auths {
		if !strings.EqualFold(serverDomain(name), u.Host) {
			continue
		}
		plain, err := base64.StdEncoding.DecodeString(entry.Auth)
		user, pass, ok := strings.Cut(strings.TrimRight(string(plain), "\x00"), ":")
		if entry.Auth != "" && (err != nil || !ok) {
			return Credentials{}, errs.New(errs.Invalid, "credentials of %s: %s: its auth is not base64 of USER:PASSWORD", u.Host, path)
		}
		return Credentials{Username: user, Password: pass, IdentityToken: entry.Identity, RegistryToken: entry.Registry}, nil
	}
	return Credentials{}, errs.New(errs.NotFound, "credentials of %s: %s has none for it", u.Host, path)
}
