package server

import (
	"net/http"
	"time"
)

// NewHTTPServer is an http.Server with the bounds that a registry needs against slow and greedy clients. Bodies have no deadline as a whole (a layer may
// take hours), but each part of them (Limits.IdleBody).
func NewHTTPServer(h http.Handler) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
	}
}
