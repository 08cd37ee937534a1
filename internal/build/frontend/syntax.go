package frontend

import (
	"fmt"
	"strconv"
	"strings"

	"corten.dev/corten/internal/reference"
)

// language is the minor version of the Dockerfile language that the linked packages know: BuildKit 0.33 has docker/dockerfile:1.27. What other releases keep for their "labs" channel is in it.
const language = 27

// builtIn tells whether a frontend image is one that the built-in frontend stands for, and what to say about that.
func builtIn(image string) (ours bool, notice string) {
	ref, err := reference.Parse(image)
	if err != nil {
		return false, ""
	}
	switch ref.Name() {
	case "docker.io/docker/dockerfile", "docker.io/docker/dockerfile-upstream":
	default:
		return false, ""
	}
	if major, minor, ok := version(ref.Tag); ok && (major > 1 || major == 1 && minor > language) {
		return true, fmt.Sprintf("syntax %s names a newer Dockerfile language than the built-in 1.%d, which is used instead", image, language)
	}
	return true, ""
}

// version reads the tags of docker/dockerfile: "1", "1.7", "1.7.0", each perhaps with "-labs". Other tags ("latest", "labs", "master") name no version.
func version(tag string) (major, minor int, ok bool) {
	tag, _, _ = strings.Cut(tag, "-")
	first, rest, _ := strings.Cut(tag, ".")
	major, err := strconv.Atoi(first)
	if err != nil {
		return 0, 0, false
	}
	second, _, _ := strings.Cut(rest, ".")
	if second == "" {
		return major, 0, true
	}
	minor, err = strconv.Atoi(second)
	return major, minor, err == nil
}
