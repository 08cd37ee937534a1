package access

import (
	"slices"
	"strings"
	"sync/atomic"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/reference"
	"corten.dev/corten/internal/registry/server"
)

// Rule allows somebody something. What no rule allows is refused.
type Rule struct {
	Users  []string // names; "*" is everybody who logged in
	Anyone bool     // also who did not
	// Repositories are globs over whole names, as server.Match has them. ${user} is the asker's own name.
	Repositories []string
	Actions      []server.Action // "*" is all
}

// Rights are the rules in force.
type Rights struct{ rules atomic.Pointer[[]Rule] }

// NewRights takes rules, with the members of groups already among the users.
func NewRights(rules []Rule) *Rights {
	r := &Rights{}
	r.Set(rules)
	return r
}

// Set replaces the rules.
func (r *Rights) Set(rules []Rule) {
	rules = slices.Clone(rules)
	r.rules.Store(&rules)
}

// May tells whether a user ("" is anybody) may do something in a repository, or with the catalogue ("").
func (r *Rights) May(user, repository string, action server.Action) bool {
	if repository == "" {
		return action == server.Catalog && r.catalog(user)
	}
	if checkName(repository) != nil {
		return false
	}
	for _, rule := range *r.rules.Load() {
		if rule.about(user) && rule.does(action) && rule.covers(user, repository) {
			return true
		}
	}
	return false
}

// catalog: who may list everything. Names alone can be secrets, so that it takes a rule that says so, or one that lets see all of it anyway.
func (r *Rights) catalog(user string) bool {
	for _, rule := range *r.rules.Load() {
		if !rule.about(user) {
			continue
		}
		if slices.Contains(rule.Actions, server.Catalog) || rule.does(server.Pull) && slices.Contains(rule.Repositories, "**") {
			return true
		}
	}
	return false
}

// AnyonePulls tells whether who did not log in may see anything at all.
func (r *Rights) AnyonePulls() bool {
	return slices.ContainsFunc(*r.rules.Load(), func(rule Rule) bool { return rule.Anyone && rule.does(server.Pull) })
}

func (rule *Rule) about(user string) bool {
	return rule.Anyone || user != "" && (slices.Contains(rule.Users, user) || slices.Contains(rule.Users, "*"))
}

func (rule *Rule) does(action server.Action) bool {
	return slices.Contains(rule.Actions, action) || slices.Contains(rule.Actions, "*")
}

func (rule *Rule) covers(user, repository string) bool {
	return slices.ContainsFunc(rule.Repositories, func(glob string) bool {
		if strings.Contains(glob, "${user}") {
			// Only a name that is one plain word of a repository can stand for itself: "a/b" or "**" as a user must not widen the glob.
			if user == "" || checkName(user) != nil || strings.Contains(user, "/") {
				return false
			}
			glob = strings.ReplaceAll(glob, "${user}", user)
		}
		return server.Match(glob, repository)
	})
}

// checkName is the grammar of a repository's name (distribution-spec), so that no glob is ever asked about "a/../b".
func checkName(name string) error {
	ref, err := reference.Parse("registry.invalid/" + name)
	if err != nil || ref.Path != name || ref.Tag != "" || ref.Digest != "" || len(name) > 255 {
		return errs.New(errs.Invalid, "invalid repository name")
	}
	return nil
}
