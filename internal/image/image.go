// Package image is the room of images: their configs, manifests and tags, and how they come in and go out, as archives (Store) and layer by layer (Transfers).
//
// It owns <data-root>/images, and with it what lies in the content room: configs, manifests, indexes and compressed layers. It stands on snapshots and content (by the
// contracts declared here). It does not know containers, networks or registries. It promises:
// a layer that came from elsewhere goes out with the same digest, whether its compressed blob is kept or made again; a tag names a complete image or nothing; a name or image is durable before the call returns; what an archive claims (digests, sizes, link targets) is verified,
// and a broken archive leaves nothing behind.
package image

import (
	"context"
	"io"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"corten.dev/corten/internal/manifest"
	"corten.dev/corten/internal/reference"
	"corten.dev/corten/internal/snapshot"
)

// Image is one image for one platform.
type Image struct {
	ID      digest.Digest // of the config blob
	Config  Config
	Raw     []byte // the config blob itself
	Chain   snapshot.ChainID
	Tags    []string // familiar names, "busybox:latest", sorted
	Digests []string // "repo@sha256:…", of manifests
	Size    int64    // bytes of all unpacked layers
	Tagged  time.Time
	Used    time.Time // by a container, as Used was told; zero for never
}

// Config is the image config (image-spec config.md, with Docker's extra fields).
type Config struct {
	Created      *time.Time `json:"created,omitempty"`
	Author       string     `json:"author,omitempty"`
	Architecture string     `json:"architecture"`
	Variant      string     `json:"variant,omitempty"`
	OS           string     `json:"os"`
	OSVersion    string     `json:"os.version,omitempty"`
	Comment      string     `json:"comment,omitempty"`
	Config       RunConfig  `json:"config"`
	RootFS       RootFS     `json:"rootfs"`
	History      []History  `json:"history,omitempty"`
}

// RunConfig is what an image says about running it.
type RunConfig struct {
	User         string              `json:"User,omitempty"`
	ExposedPorts map[string]struct{} `json:"ExposedPorts,omitempty"`
	Env          []string            `json:"Env,omitempty"`
	Entrypoint   []string            `json:"Entrypoint,omitempty"`
	Cmd          []string            `json:"Cmd,omitempty"`
	Volumes      map[string]struct{} `json:"Volumes,omitempty"`
	WorkingDir   string              `json:"WorkingDir,omitempty"`
	Labels       map[string]string   `json:"Labels,omitempty"`
	StopSignal   string              `json:"StopSignal,omitempty"`
	StopTimeout  *int                `json:"StopTimeout,omitempty"`
	Healthcheck  *Healthcheck        `json:"Healthcheck,omitempty"`
	OnBuild      []string            `json:"OnBuild,omitempty"`
	Shell        []string            `json:"Shell,omitempty"`
	ArgsEscaped  bool                `json:"ArgsEscaped,omitempty"`
}

// Healthcheck is Docker's HEALTHCHECK, durations in nanoseconds.
type Healthcheck struct {
	Test          []string      `json:"Test,omitempty"`
	Interval      time.Duration `json:"Interval,omitempty"`
	Timeout       time.Duration `json:"Timeout,omitempty"`
	StartPeriod   time.Duration `json:"StartPeriod,omitempty"`
	StartInterval time.Duration `json:"StartInterval,omitempty"`
	Retries       int           `json:"Retries,omitempty"`
}

// RootFS lists the layers.
type RootFS struct {
	Type    string          `json:"type"`
	DiffIDs []digest.Digest `json:"diff_ids"`
}

// History is one line of `history`.
type History struct {
	Created    *time.Time `json:"created,omitempty"`
	CreatedBy  string     `json:"created_by,omitempty"`
	Author     string     `json:"author,omitempty"`
	Comment    string     `json:"comment,omitempty"`
	EmptyLayer bool       `json:"empty_layer,omitempty"`
}

// HistoryEntry is History joined with what the store knows (sizes, ids, tags), newest first.
type HistoryEntry struct {
	ID        string // image id or "<missing>"
	Created   time.Time
	CreatedBy string
	Comment   string
	Size      int64
	Tags      []string
}

// Removed is one line of what `rmi` did; one of the two is set.
type Removed struct{ Untagged, Deleted string }

// Progress tells what happens inside a long call; fields as in Docker's JSON stream. Called from one goroutine at a time.
type Progress func(id, status string, current, total int64)

// ImportOptions describe an image made of a plain tree.
type ImportOptions struct {
	Ref      string // name to give it, may be empty
	Message  string
	Changes  []string // Dockerfile instructions as in `commit --change`
	Platform string
}

// CommitOptions describe an image made of a container's tree.
type CommitOptions struct {
	Key       string        // the writable tree (snapshot.Store)
	Without   []string      // absolute paths of it that do not belong to the image
	Parent    digest.Digest // image the container was made from, may be empty
	Ref       string
	Author    string
	Comment   string
	Run       RunConfig // the container's config, before Changes
	Changes   []string
	CreatedBy string
}

// Store is the contract of the room.
type Store interface {
	// Get finds an image by name, name:tag, name@digest, id or unique id prefix (with or without sha256:). errs.NotFound: "No such image: x".
	Get(ctx context.Context, ref string) (Image, error)
	List(ctx context.Context) ([]Image, error)
	Tag(ctx context.Context, ref, name string) error
	// Remove untags, and deletes when it was the last name. inUse names the containers of an image (running or not); it gives errs.Conflict as Docker does.
	Remove(ctx context.Context, ref string, force, prune bool, inUse func(id digest.Digest) (stopped, running []string)) ([]Removed, error)
	History(ctx context.Context, ref string) ([]HistoryEntry, error)
	// Load reads a docker archive (old and new) or OCI layout, plain, gzip or zstd; it returns the names (or ids) loaded.
	Load(ctx context.Context, r io.Reader, progress Progress) ([]string, error)
	// Save writes an archive that is a docker archive and an OCI layout at once, without the topmost layers of some chains.
	Save(ctx context.Context, refs []string, without []snapshot.ChainID, w io.Writer) error
	// HasChain tells whether the layers of a chain are here.
	HasChain(ctx context.Context, chain snapshot.ChainID) (bool, error)
	// Import makes an image of a tar stream (plain, gzip, bzip2, xz if possible, zstd).
	Import(ctx context.Context, r io.Reader, opts ImportOptions) (Image, error)
	Commit(ctx context.Context, opts CommitOptions) (Image, error)
}

// Platforms is the part of the room's contract that knows that a name can lead to images of several platforms. The zero platform is whichever the name shows.
type Platforms interface {
	// GetFor is Get for a platform. errs.NotFound when the image of that platform is not here.
	GetFor(ctx context.Context, ref string, p manifest.Platform) (Image, error)
	// SaveFor is Save of the images of some platforms alone, without the index that they may have come in.
	SaveFor(ctx context.Context, refs []string, wanted []manifest.Platform, w io.Writer) error
	// LoadFor is Load of the images of some platforms alone; wanted may be empty: of all. errs.Invalid names the others when there is none.
	LoadFor(ctx context.Context, r io.Reader, wanted []manifest.Platform, progress Progress) ([]string, error)
	// RemoveFor removes the image of one platform; names that showed it show another one of their index that is here. Of the last one it is Remove. errs.Conflict, without force, when it has a tag besides.
	RemoveFor(ctx context.Context, ref string, p manifest.Platform, force bool, inUse func(id digest.Digest) (stopped, running []string)) ([]Removed, error)
	// Parts lists the manifests that the names of an image lead to.
	Parts(ctx context.Context, id digest.Digest) ([]Part, error)
}

// CreateOptions describe an image of layers that are here.
type CreateOptions struct {
	Config []byte // kept byte for byte: the image's id is its digest
	Chain  snapshot.ChainID
	Names  []reference.Ref // with tags
	// Manifest is what the image is to go out as, made of what LayerBlobs told. Nil: that is found out when it goes out.
	Manifest *manifest.Document
}

// IndexOptions describe images that were built for several platforms, or one with attestations.
type IndexOptions struct {
	Names []reference.Ref
	// Index lists the manifests of Images, and artifacts that ReceiveArtifact took.
	Index manifest.Document
	// Images have their manifests, and no names of their own.
	Images []CreateOptions
}

// Compression is how layers are to be compressed that never were.
type Compression struct {
	Type  string // "gzip" (or empty), "zstd", "uncompressed"
	Level *int
	// Force: those that came compressed otherwise, too.
	Force bool
}

// Maker is the part of the room's contract that builds stand on. The layers are in the snapshot room already; nothing is copied.
//
//	one image        Create
//	several, or one  LayerBlobs ─▶ the caller makes each manifest ─▶ artifacts about them: Transfers.ReceiveArtifact ─▶ the index ─▶ CreateIndex ─▶ release of the artifacts
//	that has an index
//	no image at all  SendBuilt ─▶ as Transfers.Send
//
// The caller sees to it that the layers stay until the call is through (snapshot.Store's Hold).
type Maker interface {
	// Create makes an image and gives it names; those that are taken move. errs.Invalid when the config does not list the layers of the chain. Durable, its layers included.
	Create(ctx context.Context, opts CreateOptions) (Image, error)
	// LayerBlobs tells what the layers of an image are when they go out, lowest first. Those that were never compressed are compressed for that, to find out, and how is remembered: nothing
	// but the tree is kept. progress is told the bytes of a layer's tar that are through; it may be nil.
	LayerBlobs(ctx context.Context, opts CreateOptions, how Compression, progress func(layer int, current, total int64)) ([]ocispec.Descriptor, error)
	// CreateIndex makes images, and an index of them that names lead to; a name shows the image of this platform, or the first. Without names, the index is found by its digest, and dangles.
	CreateIndex(ctx context.Context, opts IndexOptions) (Image, error)
	// SendBuilt prepares what is no image here for going out.
	SendBuilt(ctx context.Context, opts CreateOptions, how Compression) (Outgoing, error)
	// DropLayers tells that layers are not needed any more by who held them: those that no image needs, nor a hold or a tree, are removed, and likewise what they stand on.
	DropLayers(chains ...snapshot.ChainID)
	// Live tells which chains images have.
	Live() func(digest.Digest) bool
}
