package image

import (
	"context"
	"fmt"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/content"
	"corten.dev/corten/internal/reference"
)

// Policy says what Collect removes. The zero value removes nothing but garbage.
type Policy struct {
	// High and Low are percents of the file system in use: at High or above, images go until no more than Low is in use. 0 is no water mark.
	High, Low int
	// MaxAge is how long an image may stay unused, however much space there is. 0 is for ever.
	MaxAge time.Duration
	// Keep is how long an image stays after its last use, however little space there is.
	Keep time.Duration
	// Tagged lets images with tags go, too. Without it only dangling ones do (see Dangling).
	Tagged bool
	// Garbage is how long downloads that nobody went on with and blobs that nothing refers to stay, for pulls to resume with; default a day, an hour when space
	// is short.
	Garbage time.Duration
}

// Collected is one thing that Collect removed.
type Collected struct {
	Image digest.Digest // or
	Blob  digest.Digest // or neither: what came of a download
	Names []string      // that the image had
	Bytes int64         // an estimate: the bulk is deleted in the background
	Why   string
}

// Collect removes what the policy lets go, in this order: what is left of downloads, blobs that nothing refers to, nameless images, images with names; each by last use,
// oldest first. space tells the free and total bytes of the file system; inUse tells whether a container stands on an image, which then stays. Each removal is
// logged with its reason. After an error, what was removed before is told all the same.
func (s *Images) Collect(ctx context.Context, p Policy, space func() (free, total int64), inUse func(digest.Digest) bool) (gone []Collected, err error) {
	c := &collecting{s: s, p: p, now: s.now(), inUse: inUse}
	if c.p.Garbage == 0 {
		c.p.Garbage = 24 * time.Hour
	}
	if p.High > 0 {
		free, total := space()
		if c.total = total; total > 0 && (total-free)*100 >= total*int64(p.High) {
			c.excess = total - free - total*int64(p.Low)/100
			c.p.Garbage = min(c.p.Garbage, time.Hour)
		}
	}
	err = c.garbage(ctx)
	for _, named := range []bool{false, true} {
		if err == nil && (!named || p.Tagged) {
			err = c.images(ctx, named)
		}
	}
	if err != nil {
		err = fmt.Errorf("collect images: %w", err)
	}
	return c.gone, err
}

// collecting is one call of Collect.
type collecting struct {
	s      *Images
	p      Policy
	now    time.Time
	inUse  func(digest.Digest) bool
	total  int64
	excess int64 // bytes to go until the low mark
	gone   []Collected
}

func (c *collecting) removed(it Collected) {
	c.excess -= it.Bytes
	c.gone = append(c.gone, it)
	c.s.log.Info("collected", "image", it.Image, "blob", it.Blob, "names", strings.Join(it.Names, " "), "bytes", it.Bytes, "why", it.Why)
}

// garbage removes what pulls left behind that did not come to an end.
func (c *collecting) garbage(ctx context.Context) error {
	before := c.now.Add(-c.p.Garbage)
	left, err := c.s.blobs.CollectIngests(before)
	for _, info := range left {
		c.removed(Collected{Bytes: info.Size, Why: "a download that nobody went on with since " + info.Stored.UTC().Format(time.RFC3339)})
	}
	if err != nil {
		return err
	}
	// A pull holds its blobs from its beginning, and what was stored lately stays in any case: nothing that is about to be referred to goes.
	live, known := c.s.Live(), map[digest.Digest]bool{}
	c.s.forms.each(func(_ digest.Digest, f form) { known[f.Digest] = true })
	return c.s.blobs.List(ctx, func(info content.Info) error {
		if live(info.Digest) || known[info.Digest] || !info.Stored.Before(before) {
			return nil
		}
		done, err := c.s.gate.unlessHeld(info.Digest, func() error { return c.s.blobs.Delete(ctx, info.Digest) })
		if err != nil || !done {
			return err
		}
		c.removed(Collected{Blob: info.Digest, Bytes: info.Size, Why: "a blob that no image refers to"})
		return nil
	})
}

// lastUse is when the image was used, or came, or got a name.
func (s *Images) lastUse(e *entry) time.Time {
	if used := s.uses.get(e.id); used.After(e.tagged) {
		return used
	}
	return e.tagged
}

// images removes images with or without names.
func (c *collecting) images(ctx context.Context, named bool) error {
	s := c.s
	usage, err := s.DiskUsage(ctx, nil)
	if err != nil {
		return err
	}
	unique := map[digest.Digest]int64{}
	for _, u := range usage.Images {
		unique[u.ID] = u.Unique()
	}
	dangling := s.Dangling(ctx)
	s.mu.RLock()
	var all []*entry
	for _, e := range s.byID {
		if named != dangling(e.id) {
			all = append(all, e)
		}
	}
	s.mu.RUnlock()
	sort.Slice(all, func(i, j int) bool { return s.lastUse(all[i]).Before(s.lastUse(all[j])) })
	for _, e := range all {
		if err := ctx.Err(); err != nil {
			return err
		}
		unused := c.now.Sub(s.lastUse(e))
		why := ""
		switch {
		case unused < c.p.Keep:
		case c.p.MaxAge > 0 && unused >= c.p.MaxAge:
			why = fmt.Sprintf("not used for %s, which is more than %s", unused.Round(time.Second), c.p.MaxAge)
		case c.excess > 0:
			why = fmt.Sprintf("the file system is more than %d %% full, and this was not used for %s", c.p.High, unused.Round(time.Second))
		}
		if why == "" || c.inUse != nil && c.inUse(e.id) {
			continue
		}
		names, ok, err := s.dropImage(e.id, named)
		if err != nil {
			return err
		}
		if ok {
			c.removed(Collected{Image: e.id, Names: names, Bytes: unique[e.id], Why: why})
		}
	}
	return nil
}

// dropImage removes an image with all its names, unless it got its first tag meanwhile.
func (s *Images) dropImage(id digest.Digest, named bool) (names []string, ok bool, err error) {
	s.gate.begin()
	defer s.gate.end()
	var e *entry
	err = s.change(func(t *table) error {
		e, names = nil, nil
		mine := namesOf(t.names, id)
		if t.byID[id] == nil || !named && slices.ContainsFunc(mine, func(r reference.Ref) bool { return r.Digest == "" }) {
			return nil
		}
		e = t.byID[id]
		for _, r := range mine {
			names = append(names, r.Familiar())
			if idx := t.indexes[r.String()]; idx != "" {
				s.gate.candidate(loose{config: true, name: idx})
			}
			delete(t.names, r.String())
		}
		delete(t.byID, id)
		return nil
	})
	if err != nil || e == nil {
		return nil, false, err
	}
	s.looseEntry(e)
	return names, true, nil
}
