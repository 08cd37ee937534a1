package server

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/errs"
)

// A collection goes in steps, each of which only takes what nothing leads to after the step before, so that it can be killed anywhere:
//
//	uploads nobody touched for UploadAge
//	for each repository: tags that the rules give up ─▶ manifests without a tag, if the rules say so ─▶ entries of referrers without manifest
//	                     ─▶ links of blobs that no manifest names
//	blobs that no repository links
//
// Nothing stops meanwhile. Everything is removed on a condition that the driver checks at the moment of removing: a value only if it is still the one
// that was looked at, a blob only if it was not stored or touched since. See links.go for why that is enough.
type collection struct {
	r      *Registry
	opts   CollectOptions
	cutoff time.Time // what was counted on since then stays
	report Report
	live   map[[16]byte]struct{} // blobs that a repository links, by a prefix of the sha256 of the digest
}

// Collect removes what nothing refers to, and what the rules say, while the registry serves.
func (r *Registry) Collect(ctx context.Context, opts CollectOptions) (Report, error) {
	if opts.Grace == 0 {
		opts.Grace = r.limits.Grace
	}
	if opts.Grace < r.limits.Grace {
		return Report{}, errs.New(errs.Invalid, "collect: grace of %s is shorter than the registry's %s", opts.Grace, r.limits.Grace)
	}
	for _, rule := range opts.Rules {
		if err := rule.check(); err != nil {
			return Report{}, err
		}
	}
	if !r.collecting.CompareAndSwap(false, true) {
		return Report{}, errs.New(errs.Conflict, "collect: a collection is under way")
	}
	defer r.collecting.Store(false)
	started := time.Now()
	k := &collection{r: r, opts: opts, cutoff: started.Add(-opts.Grace), live: map[[16]byte]struct{}{}}
	k.report.DryRun = opts.DryRun
	err := k.run(ctx)
	k.report.Duration = time.Since(started)
	if err != nil {
		return k.report, fmt.Errorf("collect: %w", err)
	}
	return k.report, nil
}

func (k *collection) run(ctx context.Context) error {
	if err := k.uploads(ctx); err != nil {
		return err
	}
	err := k.r.walkRepositories(ctx, "", "", func(name string, _ []string) error { return k.repository(ctx, name) })
	if err != nil {
		return err
	}
	return k.blobs(ctx)
}

func (k *collection) gone(g Gone) {
	switch g.Kind {
	case "upload":
		k.report.Uploads++
	case "tag":
		k.report.Tags++
	case "manifest":
		k.report.Manifests++
	case "link":
		k.report.Links++
	case "blob":
		k.report.Blobs++
	}
	k.report.Bytes += g.Size
	if k.opts.Log != nil {
		k.opts.Log(g)
	}
}

// remove deletes on a condition and tells whether it was met. In a dry run it always is.
func (k *collection) remove(delete func() error) (bool, error) {
	if k.opts.DryRun {
		return true, nil
	}
	err := delete()
	if errors.Is(err, errs.Conflict) {
		return false, nil
	}
	return err == nil, err
}

func (k *collection) uploads(ctx context.Context) error {
	if k.r.limits.UploadAge < 0 {
		return nil
	}
	_, err := k.r.expireUploads(ctx, k.r.limits.UploadAge, func(u UploadInfo) bool {
		k.gone(Gone{Kind: "upload", Name: u.ID, Size: u.Size, Why: "nobody went on with it since " + u.Changed.UTC().Format(time.RFC3339)})
		return !k.opts.DryRun
	})
	if err != nil || k.opts.DryRun {
		return err
	}
	return k.r.countUploads(ctx)
}

// inventory is what a repository has.
type inventory struct {
	name      string
	manifests map[digest.Digest]*keptManifest
	tags      map[string]tagValue
}

// keptManifest is what the collection has to know of a manifest, without its bytes.
type keptManifest struct {
	head      recordHead
	size      int64
	hash      [32]byte // of the kept value, to see whether it changed
	blobs     []digest.Digest
	manifests []digest.Digest
	needed    bool
}

func (k *collection) repository(ctx context.Context, name string) error {
	inv, err := k.take(ctx, name)
	if err != nil {
		return fmt.Errorf("repository %s: %w", name, err)
	}
	for _, step := range []func(context.Context, *inventory) error{k.tags, k.untagged, k.referrers, k.links} {
		if err := step(ctx, inv); err != nil {
			return fmt.Errorf("repository %s: %w", name, err)
		}
	}
	return nil
}

// take reads a repository. Tags are read after the manifests, so that a tag whose manifest is unknown really dangles, or is new.
func (k *collection) take(ctx context.Context, name string) (*inventory, error) {
	inv := &inventory{name: name, manifests: map[digest.Digest]*keptManifest{}, tags: map[string]tagValue{}}
	err := k.r.eachDigest(ctx, repositoryKey(name)+"/"+manifestsPart, func(d digest.Digest) error {
		m, err := k.takeManifest(ctx, name, d)
		if err == nil {
			inv.manifests[d] = m
		}
		if isNotFound(err) {
			return nil
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	err = k.r.tagNames(ctx, name, "", func(tag string) error {
		t, _, err := k.r.getTag(ctx, name, tag)
		if err == nil {
			inv.tags[tag] = t
		}
		if isNotFound(err) {
			return nil
		}
		return err
	})
	return inv, err
}

func (k *collection) takeManifest(ctx context.Context, repo string, d digest.Digest) (*keptManifest, error) {
	m, value, err := k.r.getManifest(ctx, repo, d)
	if err != nil {
		return nil, err
	}
	doc, err := parseDocument(m.MediaType, m.raw)
	if err != nil {
		// It was accepted once. Without knowing what it names nothing of this repository may go.
		return nil, fmt.Errorf("manifest %s cannot be read any more: %w", d, err)
	}
	kept := &keptManifest{head: m.recordHead, size: int64(len(m.raw)), hash: sha256.Sum256(value)}
	for _, desc := range doc.blobs {
		kept.blobs = append(kept.blobs, desc.Digest)
	}
	for _, desc := range doc.manifests {
		kept.manifests = append(kept.manifests, desc.Digest)
	}
	return kept, nil
}

// eachDigest calls fn for each <algorithm>/<hex> below a key.
func (r *Registry) eachDigest(ctx context.Context, key string, fn func(digest.Digest) error) error {
	return r.d.List(ctx, key, "", func(alg string, dir bool) error {
		if !dir {
			return nil
		}
		return r.d.List(ctx, key+"/"+alg, "", func(hex string, _ bool) error {
			if d, ok := parseDigest(alg + ":" + hex); ok {
				return fn(d)
			}
			return nil
		})
	})
}

// tags gives up what the rule of the repository says, and tags of manifests that are gone.
func (k *collection) tags(ctx context.Context, inv *inventory) error {
	for tag, why := range k.tagsToGo(inv) {
		seen := inv.tags[tag]
		removed, err := k.remove(func() error {
			t, value, err := k.r.getTag(ctx, inv.name, tag)
			if isNotFound(err) {
				return nil
			}
			if err != nil {
				return err
			}
			if t != seen {
				return errs.New(errs.Conflict, "tag %s was moved", tag)
			}
			return k.r.d.Delete(ctx, tagKey(inv.name, tag), value)
		})
		if err != nil {
			return err
		}
		if removed {
			delete(inv.tags, tag)
			k.gone(Gone{Kind: "tag", Repository: inv.name, Name: tag, Why: why})
		}
	}
	return nil
}

// untagged gives up manifests that no tag leads to, if the rule of the repository says so.
func (k *collection) untagged(ctx context.Context, inv *inventory) error {
	rule, ok := k.rule(inv.name)
	if !ok || rule.Untagged == 0 {
		return nil
	}
	inv.follow()
	limit := time.Now().Add(-rule.Untagged)
	for d, m := range inv.manifests {
		if m.needed || m.head.Pushed.After(limit) || m.head.Seen.After(k.cutoff) {
			continue
		}
		removed, err := k.remove(func() error { return k.removeSame(ctx, inv.name, d, m) })
		if err != nil {
			return err
		}
		if removed {
			delete(inv.manifests, d)
			k.gone(Gone{Kind: "manifest", Repository: inv.name, Name: string(d), Why: "no tag leads to it"})
		}
	}
	return nil
}

func (k *collection) removeSame(ctx context.Context, repo string, d digest.Digest, seen *keptManifest) error {
	m, value, err := k.r.getManifest(ctx, repo, d)
	if isNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if sha256.Sum256(value) != seen.hash {
		return errs.New(errs.Conflict, "manifest %s was pushed again", d)
	}
	return k.r.removeManifest(ctx, repo, d, m, value)
}

// follow marks what tags lead to: themselves, what an index names, and the referrers of all these.
func (inv *inventory) follow() {
	referrers := map[digest.Digest][]digest.Digest{}
	for d, m := range inv.manifests {
		if m.head.Subject != "" {
			referrers[m.head.Subject] = append(referrers[m.head.Subject], d)
		}
	}
	var todo []digest.Digest
	for _, t := range inv.tags {
		todo = append(todo, t.Digest)
	}
	for len(todo) > 0 {
		d := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		m := inv.manifests[d]
		if m == nil || m.needed {
			continue
		}
		m.needed = true
		todo = append(append(todo, m.manifests...), referrers[d]...)
	}
}

// referrers removes entries whose manifest is gone (of a registry that was killed in between).
func (k *collection) referrers(ctx context.Context, inv *inventory) error {
	key := repositoryKey(inv.name) + "/" + referrersPart
	return k.r.eachDigest(ctx, key, func(subject digest.Digest) error {
		return k.r.d.List(ctx, referrersKey(inv.name, subject), "", func(name string, _ bool) error {
			d, ok := parseDigest(strings.Replace(name, ".", ":", 1))
			if !ok || inv.manifests[d] != nil || k.opts.DryRun {
				return nil
			}
			return k.dropEntry(ctx, inv.name, subject, d)
		})
	})
}

func (k *collection) dropEntry(ctx context.Context, repo string, subject, d digest.Digest) error {
	entry := referrersKey(repo, subject) + "/" + referrerName(d)
	value, err := k.r.d.Get(ctx, entry)
	if err != nil {
		return ignoreNotFound(err)
	}
	if _, _, err = k.r.getManifest(ctx, repo, d); !isNotFound(err) {
		return err // it was pushed since
	}
	_, err = k.remove(func() error { return k.r.d.Delete(ctx, entry, value) })
	return err
}

func ignoreNotFound(err error) error {
	if isNotFound(err) {
		return nil
	}
	return err
}

// links removes what no manifest names, and marks the blobs of all that stays.
func (k *collection) links(ctx context.Context, inv *inventory) error {
	named := map[digest.Digest]bool{}
	for _, m := range inv.manifests {
		for _, d := range m.blobs {
			named[d] = true
		}
		for _, d := range m.manifests {
			named[d] = true
		}
	}
	return k.r.eachDigest(ctx, repositoryKey(inv.name)+"/"+blobsPart, func(d digest.Digest) error {
		if named[d] {
			k.mark(d)
			return nil
		}
		value, err := k.r.d.Get(ctx, linkKey(inv.name, d))
		if err != nil {
			return ignoreNotFound(err)
		}
		l, err := decodeLink(value)
		if err != nil {
			return err
		}
		if !l.seen.Before(k.cutoff) {
			k.mark(d)
			return nil
		}
		removed, err := k.remove(func() error { return k.r.d.Delete(ctx, linkKey(inv.name, d), value) })
		if err != nil {
			return err
		}
		if !removed {
			k.mark(d)
			return nil
		}
		k.gone(Gone{Kind: "link", Repository: inv.name, Name: string(d), Why: "no manifest names it"})
		return nil
	})
}

func (k *collection) mark(d digest.Digest) { k.live[liveKey(d)] = struct{}{} }

// liveKey is short, for memory; two digests with one key only mean that a blob stays which could go.
func liveKey(d digest.Digest) [16]byte {
	sum := sha256.Sum256([]byte(d))
	return [16]byte(sum[:16])
}

// blobs removes the bytes that no repository has.
func (k *collection) blobs(ctx context.Context) error {
	return k.r.d.WalkBlobs(ctx, func(b BlobInfo) error {
		if _, live := k.live[liveKey(b.Digest)]; live || !b.Stored.Before(k.cutoff) {
			k.report.Kept++
			return nil
		}
		removed, err := k.remove(func() error { return k.r.d.DeleteBlob(ctx, b.Digest, k.cutoff) })
		if err != nil {
			return err
		}
		if !removed {
			k.report.Kept++
			return nil
		}
		k.gone(Gone{Kind: "blob", Name: string(b.Digest), Size: b.Size, Why: "no repository has it"})
		return nil
	})
}
