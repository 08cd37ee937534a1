package server

import (
	"cmp"
	"math"
	"strconv"
	"strings"

	"corten.dev/corten/internal/errs"
)

// The API versions served; the first number is always 1.
const (
	minVersion = 24
	maxVersion = 56
	// heardVersion is answered as minVersion, and not spoken of: skopeo, podman and buildah of many releases ask for archives of images (docker-daemon:) by 1.22, whatever
	// the engine says it has.
	heardVersion = 22
)

// splitVersion takes the prefix /vVERSION off a path, without judging it: as with Docker's, any row of digits and dots is a version.
func splitVersion(path string) (rest, version string) {
	after, ok := strings.CutPrefix(path, "/v")
	version, rest, slash := strings.Cut(after, "/")
	if !ok || !slash || version == "" || strings.Trim(version, "0123456789.") != "" {
		return path, ""
	}
	return "/" + rest, version
}

// spokenVersion is the minor number by which a request is answered that asks for a version ("" for none). Versions are compared number by number, so that 2 is too new and 1, or
// 1., too old.
func spokenVersion(text string) (int, error) {
	if text == "" {
		return maxVersion, nil
	}
	switch {
	case compareVersion(text, maxVersion) > 0:
		return 0, errs.New(errs.Invalid, "client version %s is too new. Maximum supported API version is 1.%d", text, maxVersion)
	case compareVersion(text, heardVersion) < 0:
		return 0, errs.New(errs.Invalid, "client version %s is too old. Minimum supported API version is 1.%d, please upgrade your client to a newer version", text, minVersion)
	}
	_, minor, _ := strings.Cut(text, ".")
	minor, _, _ = strings.Cut(minor, ".")
	return max(versionNumber(minor), minVersion), nil
}

// compareVersion compares a version with 1.minor. Numbers that are not there are 0.
func compareVersion(text string, minor int) int {
	parts := strings.Split(text, ".")
	against := []int{1, minor}
	for i := range max(len(parts), len(against)) {
		var a, b int
		if i < len(parts) {
			a = versionNumber(parts[i])
		}
		if i < len(against) {
			b = against[i]
		}
		if c := cmp.Compare(a, b); c != 0 {
			return c
		}
	}
	return 0
}

// versionNumber reads digits; there may be none, or more than a number has.
func versionNumber(digits string) int {
	if digits == "" {
		return 0
	}
	n, err := strconv.ParseUint(digits, 10, 31)
	if err != nil {
		return math.MaxInt32
	}
	return int(n)
}
