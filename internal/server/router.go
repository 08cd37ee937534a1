package server

import (
	"net/http"
	"strings"
)

// handler answers one route. An error that it returns before it wrote anything becomes the answer.
type handler func(w http.ResponseWriter, r *request) error

// route is one pattern: segments to compare, "*" for one segment of any text, "**" for one or more (image names have slashes in them).
type route struct {
	method   string
	segments []string
	handle   handler
}

// add enters "METHOD /a/*/b" under its first segment. Within it, earlier routes win.
func add(routes map[string][]route, pattern string, handle handler) {
	method, path, _ := strings.Cut(pattern, " ")
	first, rest, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	r := route{method: method, handle: handle}
	if rest != "" {
		r.segments = strings.Split(rest, "/")
	}
	routes[first] = append(routes[first], r)
}

// find returns the handler of a path (without version) and the texts that its wildcards stand for; nil when there is none.
func (s *Server) find(method, path string) (handler, []string) {
	path = strings.Trim(path, "/")
	first, rest, _ := strings.Cut(path, "/")
	var segments []string
	if rest != "" {
		segments = strings.Split(rest, "/")
	}
	for _, r := range s.routes[first] {
		if r.method != method {
			continue
		}
		if vars, ok := match(r.segments, segments); ok {
			return r.handle, vars
		}
	}
	return nil, nil
}

// match compares without allocating until it is sure, because most routes that are tried do not match.
func match(pattern, segments []string) ([]string, bool) {
	extra := len(segments) - len(pattern)
	if extra < 0 {
		return nil, false
	}
	n, at := 0, 0 // wildcards; the segment that the pattern's word stands against
	for _, p := range pattern {
		switch p {
		case "**":
			n++
			at += extra
			extra = 0
		case "*":
			n++
		case segments[at]:
		default:
			return nil, false
		}
		at++
	}
	if at != len(segments) {
		return nil, false
	}
	if n == 0 {
		return nil, true
	}
	vars := make([]string, 0, n)
	extra, at = len(segments)-len(pattern), 0
	for _, p := range pattern {
		switch p {
		case "**":
			vars = append(vars, strings.Join(segments[at:at+extra+1], "/"))
			at += extra
		case "*":
			vars = append(vars, segments[at])
		}
		at++
	}
	return vars, true
}

// table lists every route of the API.
func (s *Server) table() map[string][]route {
	t := map[string][]route{}
	for _, group := range [][]entry{s.systemRoutes(), s.containerRoutes(), s.imageRoutes(), s.registryRoutes(), s.documentRoutes(), s.volumeRoutes(), s.networkRoutes(), s.cortenRoutes(), s.buildKitRoutes(), s.buildRoutes(), s.absentRoutes()} {
		for _, e := range group {
			add(t, e.pattern, e.handle)
		}
	}
	return t
}

// entry is one line of the table of routes.
type entry struct {
	pattern string
	handle  handler
}
