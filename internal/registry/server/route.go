package server

import (
	"net/http"
	"strings"
)

type kind int

const (
	routeOther kind = iota
	routeBase
	routeCatalog
	routeTags
	routeManifest
	routeBlob
	routeUploads
	routeUpload
	routeReferrers
)

var kindNames = [...]string{"other", "base", "catalog", "tags", "manifest", "blob", "uploads", "upload", "referrers"}

// methods of each kind of route, as the Allow header says them.
var methods = [...]string{"", "GET, HEAD", "GET, HEAD", "GET, HEAD", "GET, HEAD, PUT, DELETE", "GET, HEAD, DELETE", "POST",
	"GET, HEAD, PATCH, PUT, DELETE", "GET, HEAD"}

// route is a request's path, taken apart. Nothing in it is verified but its form.
type route struct {
	kind kind
	name string // of the repository
	ref  string // tag, digest or id of an upload
}

// parseRoute reads a path from its end, because a repository may be called like a route ("tags/list/manifests").
func parseRoute(path string) route {
	rest, ok := strings.CutPrefix(path, "/v2/")
	if !ok {
		if path == "/v2" {
			return route{kind: routeBase}
		}
		return route{}
	}
	switch rest {
	case "":
		return route{kind: routeBase}
	case "_catalog":
		return route{kind: routeCatalog}
	}
	if name, ok := strings.CutSuffix(rest, "/tags/list"); ok {
		return route{kind: routeTags, name: name}
	}
	if name, ok := strings.CutSuffix(strings.TrimSuffix(rest, "/"), "/blobs/uploads"); ok {
		return route{kind: routeUploads, name: name}
	}
	rest, ref, ok := cutLast(rest)
	if !ok || ref == "" {
		return route{}
	}
	if name, ok := strings.CutSuffix(rest, "/blobs/uploads"); ok {
		return route{kind: routeUpload, name: name, ref: ref}
	}
	name, word, ok := cutLast(rest)
	if !ok || name == "" {
		return route{}
	}
	switch word {
	case "manifests":
		return route{kind: routeManifest, name: name, ref: ref}
	case "blobs":
		return route{kind: routeBlob, name: name, ref: ref}
	case "referrers":
		return route{kind: routeReferrers, name: name, ref: ref}
	}
	return route{}
}

func cutLast(s string) (before, after string, ok bool) {
	i := strings.LastIndexByte(s, '/')
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+1:], true
}

// allows tells whether a kind of route knows the method.
func (k kind) allows(method string) bool {
	for m := range strings.SplitSeq(methods[k], ", ") {
		if m == method && m != "" {
			return true
		}
	}
	return false
}

// actions is what a request needs the right to.
func (rt route) actions(method string) []Action {
	switch {
	case rt.kind == routeBase:
		return nil
	case rt.kind == routeCatalog:
		return []Action{Catalog}
	case rt.kind == routeUploads || rt.kind == routeUpload:
		return []Action{Pull, Push}
	case method == http.MethodPut:
		return []Action{Pull, Push}
	case method == http.MethodDelete:
		return []Action{Delete}
	}
	return []Action{Pull}
}
