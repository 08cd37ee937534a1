package cli

import (
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// describeSource adds to a build with provenance what git knows of its context, by buildx's names. A context that is in no repository, or a host without git, has nothing to add.
func (p *buildPlan) describeSource() {
	dir := p.dirs["context"]
	if _, wanted := p.req.Attrs["attest:provenance"]; !wanted || dir == "" {
		return
	}
	if on, ok := boolOf(os.Getenv("BUILDX_GIT_INFO")); ok && !on {
		return
	}
	git := func(args ...string) string {
		cmd := exec.Command("git", append([]string{"-C", dir}, args...)...)
		cmd.Env = append(os.Environ(), "GIT_OPTIONAL_LOCKS=0", "LC_ALL=C")
		out, err := cmd.Output()
		if err != nil {
			return ""
		}
		return strings.TrimSpace(string(out))
	}
	top := git("rev-parse", "--show-toplevel")
	if top == "" {
		return
	}
	revision := git("rev-parse", "HEAD")
	if on, _ := boolOf(os.Getenv("BUILDX_GIT_CHECK_DIRTY")); on && revision != "" && git("status", "--porcelain", "--ignored=no") != "" {
		revision += "-dirty"
	}
	set := func(key, value string) {
		if value != "" {
			p.req.Attrs["vcs:"+key] = value
		}
	}
	set("revision", revision)
	set("source", withoutSecret(git("remote", "get-url", "origin")))
	for key, name := range map[string]string{"localdir:context": dir, "localdir:dockerfile": p.dirs["dockerfile"]} {
		if abs, err := filepath.EvalSymlinks(name); name != "" && err == nil {
			if abs, err = filepath.Abs(abs); err == nil {
				if rel, err := filepath.Rel(top, abs); err == nil && !strings.HasPrefix(rel, "..") {
					set(key, rel)
				}
			}
		}
	}
}

// withoutSecret takes a password off an address.
func withoutSecret(address string) string {
	u, err := url.Parse(address)
	if err != nil || u.User == nil {
		return address
	}
	u.User = nil
	return u.String()
}
