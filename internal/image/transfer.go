package image

import (
	"context"
	"io"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"corten.dev/corten/internal/manifest"
	"corten.dev/corten/internal/reference"
)

// Transfers is the part of the room's contract that pull and push stand on. The room does not know registries: it takes documents and streams, and
// gives documents and streams.
//
//	pull   Receive(manifest, config) ─▶ Incoming ─▶ Unpack(layer i, stream) side by side ─▶ Commit(names) ─▶ Image
//	push   Send(ref) ─▶ Outgoing ─▶ for each layer: Known? or Open, and Sent(descriptor) ─▶ Manifest() ─▶ Pushed(name, digest)
type Transfers interface {
	// Receive begins an image whose manifest and config are there. Layers that the store has already need no bytes.
	Receive(ctx context.Context, doc manifest.Document, config []byte) (Incoming, error)
	// ReceiveArtifact keeps what an index lists beside images (an attestation, a signature): its manifest and blobs, which fetch gives when they are not here. They are held until
	// release; AddIndex makes them part of the index. errs.Invalid when it is too large to be kept.
	ReceiveArtifact(ctx context.Context, doc manifest.Document, fetch func(context.Context, ocispec.Descriptor) ([]byte, error)) (release func(), err error)
	// AddIndex keeps an index under a name, beside the image of this platform that the name leads to; what push needs of a multi-platform image.
	AddIndex(ctx context.Context, name reference.Ref, index manifest.Document) error
	// Send prepares an image, or with all its platforms the index it came with, for going out. Artifacts of the index come after its images; their layers are never other bytes than
	// Known says.
	Send(ctx context.Context, ref string, opts SendOptions) ([]Outgoing, *manifest.Document, error)
	// Pushed writes down that a registry has the image under this digest (a repo digest of Image).
	Pushed(ctx context.Context, name reference.Ref, img digest.Digest, doc manifest.Document) error
}

// Incoming is an image that is coming in. What it has taken is held against collection until Close.
type Incoming interface {
	// Layers lists the layers from the lowest, and which of them the store has.
	Layers() []IncomingLayer
	// Unpack takes a layer's blob as the registry has it (gzip, zstd or plain, told by its first bytes) and unpacks it. Calls for all layers may run side
	// by side: one waits for the layers below where the driver needs them. Verified: the diff id here, the blob's digest by the caller's ingest.
	// A layer that another call is unpacking (another pull, the same diff id) is waited for instead, and r is then left unread.
	// When it fails and r is an io.Closer, r is closed, to end a Read that waits for more; r is not touched any more when Unpack has returned.
	// After an error the layer may be tried again with a reader that begins anew; the layers above go on waiting, until their contexts end or Close.
	Unpack(ctx context.Context, i int, r io.Reader) error
	// Keep hands over the verified compressed blob of layer i, which is in the content room; the room decides whether it stays or can be rebuilt
	// bit for bit, and deletes it in the second case. Nothing happens to the blob before Commit: it is there for the next try of a pull that is broken off.
	Keep(ctx context.Context, i int, blob ocispec.Descriptor) error
	// Commit records the image under these names ("repo:tag", "repo@sha256:…"); all layers must be unpacked.
	Commit(ctx context.Context, names []reference.Ref) (Image, error)
	// Close lets go of everything that was not committed. Safe after Commit.
	Close() error
}

// IncomingLayer is one layer of an Incoming.
type IncomingLayer struct {
	Blob   ocispec.Descriptor // as the manifest has it
	DiffID digest.Digest
	Have   bool
}

// SendOptions choose what goes out.
type SendOptions struct {
	AllPlatforms bool
	Platform     manifest.Platform // zero: this host's
	Compression  string            // "gzip" (default) or "zstd", for layers that never were compressed; others keep their digest
}

// Outgoing is one image of one platform that goes out.
type Outgoing interface {
	ID() digest.Digest
	Config() (ocispec.Descriptor, []byte)
	Layers() []OutgoingLayer
	// Manifest is the manifest the image came with, if all its layers still are what it says, else a new one of the layers that were Sent.
	Manifest() (manifest.Document, error)
	Close() error
}

// OutgoingLayer is a layer on its way out.
type OutgoingLayer interface {
	DiffID() digest.Digest
	// Known is the compressed form, when it was seen before (pulled, or pushed once): registries can be asked for it without making it.
	Known() (ocispec.Descriptor, bool)
	// Size estimates the bytes that Open will give (the uncompressed size when nothing better is known).
	Size() int64
	// Open gives the compressed bytes: the kept blob, the same bytes made again, or a first compression. They are other bytes than Known names only when
	// those are neither kept nor can be made again (Options.KeepBlobs "never"): digest what was sent, and tell Sent.
	Open(ctx context.Context, offset int64) (io.ReadCloser, error)
	// Sent tells what the bytes of a first compression turned out to be; it is remembered. An empty media type is filled in.
	Sent(ocispec.Descriptor) error
	// Origins are repositories that are known to have this blob ("docker.io/library/debian"), for mounting.
	Origins() []string
}
