package server

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
)

// rule finds the first rule for a repository.
func (k *collection) rule(repo string) (Rule, bool) {
	for _, rule := range k.opts.Rules {
		if matches(rule.Repositories, repo, true) {
			return rule, true
		}
	}
	return Rule{}, false
}

// tagsToGo says which tags go, and why.
func (k *collection) tagsToGo(inv *inventory) map[string]string {
	goes := map[string]string{}
	for tag, t := range inv.tags {
		if inv.manifests[t.Digest] == nil && t.Pushed.Before(k.cutoff) {
			goes[tag] = "its manifest is gone"
		}
	}
	rule, ok := k.rule(inv.name)
	if !ok || rule.KeepLast == 0 && rule.KeepFor == 0 {
		return goes
	}
	maps.Copy(goes, rule.giveUp(inv.tags, time.Now()))
	for tag, t := range inv.tags {
		if subject, ok := tagSubject(tag); ok && inv.manifests[subject] == nil && t.Pushed.Before(k.cutoff) && !matches(rule.Keep, tag, false) {
			goes[tag] = "the manifest that it is about is gone"
		}
	}
	return goes
}

// tagSubject reads tags that are made of a digest: lists of referrers by old clients ("sha256-<hex>"), and signatures ("sha256-<hex>.sig").
func tagSubject(tag string) (digest.Digest, bool) {
	alg, rest, ok := strings.Cut(tag, "-")
	encoded, _, _ := strings.Cut(rest, ".")
	if !ok {
		return "", false
	}
	return parseDigest(alg + ":" + encoded)
}

// giveUp applies the rule to the tags of one repository.
func (rule Rule) giveUp(tags map[string]tagValue, now time.Time) map[string]string {
	var about []string
	for tag := range tags {
		if _, aside := tagSubject(tag); aside {
			continue // it goes with what it is about
		}
		if matches(rule.Tags, tag, true) && !matches(rule.Keep, tag, false) {
			about = append(about, tag)
		}
	}
	slices.SortFunc(about, func(a, b string) int { // newest first
		if c := tags[b].Pushed.Compare(tags[a].Pushed); c != 0 {
			return c
		}
		return strings.Compare(b, a)
	})
	goes := map[string]string{}
	for i, tag := range about {
		if i < rule.KeepLast || rule.KeepFor > 0 && now.Sub(tags[tag].Pushed) < rule.KeepFor {
			continue
		}
		why := fmt.Sprintf("pushed %s", tags[tag].Pushed.UTC().Format(time.RFC3339))
		if rule.KeepLast > 0 {
			why += fmt.Sprintf(", number %d from the newest, %d are kept", i+1, rule.KeepLast)
		}
		if rule.KeepFor > 0 {
			why += fmt.Sprintf(", older than %s", rule.KeepFor)
		}
		goes[tag] = why
	}
	return goes
}
