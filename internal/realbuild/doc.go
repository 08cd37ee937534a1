// Package realbuild holds the slow tests of builds: Dockerfiles as people have them, with their installs of packages from Debian, npm and the Go module proxy. Each image is built, run and spoken to,
// and built once more, when every step must be cached.
//
// It owns no code of the product. `make test-real` runs it, as root, on a host with debootstrap and a network; a plain `go test` skips it. The tree of Debian on which all of it stands is made once and
// kept in $CORTEN_REAL_CACHE (/var/tmp/corten-real).
package realbuild
