package server

import (
	"log/slog"
	"time"
)

// Options describe a registry. Only Driver is needed.
type Options struct {
	Driver    Driver
	Guard     Guard        // nil: everybody may do everything
	Logger    *slog.Logger // nil: no log
	Upstreams Upstreams    // nil: no pull-through
	Observer  Observer     // nil: nobody
	Limits    Limits

	// ReadOnly refuses pushes and deletes (405), NoDelete only deletes.
	ReadOnly bool
	NoDelete bool
	// AbsoluteLocation answers with full URLs, which some old clients need. The host is the request's, the scheme what TLS or X-Forwarded-Proto say.
	AbsoluteLocation bool
}

// Limits bound what clients can ask for. Zero values are the defaults named here; negative ones are no limit.
type Limits struct {
	Manifest  int64         // bytes of a manifest: 4 MiB
	Blob      int64         // bytes of a blob: no limit
	Chunk     int64         // least bytes of a chunk but the last, sent as OCI-Chunk-Min-Length: none
	Uploads   int           // open uploads at a time: 10000
	UploadAge time.Duration // after which an upload that nobody touched is thrown away by a collection: 7 days
	Page      int           // most entries of one answer of tags, catalogue and referrers: 10000 (referrers: and 4 MiB)
	IdleBody  time.Duration // how long a body may stand still in either direction: 1 minute
	// Grace is how long something that nothing refers to stays for pushes that are under way: an hour. Registries that share one place have the same.
	Grace time.Duration
}

// CollectOptions say what a collection does.
type CollectOptions struct {
	// DryRun only tells what would go.
	DryRun bool
	// Grace is how long something that nothing refers to is left; 0 is Limits.Grace, and less is refused: requests count on that.
	Grace time.Duration
	// Rules decide about tags and manifests; the first one whose Repositories match a repository counts. None: all tags and manifests stay.
	Rules []Rule
	// Log is told of each thing that goes, if set.
	Log func(Gone)
}

// Rule is what to keep in some repositories. A tag goes if it matches Tags, is not protected by Keep, and is neither among the newest KeepLast nor
// younger than KeepFor (as far as these are set). A rule without KeepLast and KeepFor removes no tag. Tags made of a digest (signatures, lists of
// referrers) are not counted: they stay as long as the manifest that they are about, or Keep says so.
type Rule struct {
	Repositories []string      // globs over whole names ("team/*" is one level, "team/**" all below); none is every repository
	Tags         []string      // globs of the tags it is about; none is every tag
	Keep         []string      // globs of tags that always stay
	KeepLast     int           // so many of the newest stay
	KeepFor      time.Duration // what was pushed since stays
	// Untagged removes manifests that no tag leads to (also not through an index or as a referrer of one that stays), this long after they were
	// pushed; 0 keeps them.
	Untagged time.Duration
}

// Gone is one thing that a collection removed, or would.
type Gone struct {
	Kind       string // "upload", "tag", "manifest", "link" (of a blob to a repository), "blob"
	Repository string
	Name       string // tag, digest or id
	Size       int64  // of an upload or blob
	Why        string
}

// Report is what a collection did.
type Report struct {
	DryRun                                 bool
	Uploads, Tags, Manifests, Links, Blobs int
	Bytes                                  int64 // of uploads and blobs
	Kept                                   int   // blobs that stay
	Duration                               time.Duration
}
