// Package tarfs turns directory trees into tar streams and tar streams into directory trees.
//
// It is the only place that knows how a tar entry becomes a file: owners, times with nanoseconds, hard links, xattrs and
// capabilities (PAX SCHILY.xattr), devices, sparse files, and deletions, which are ".wh." names in a tar and character
// devices 0:0 or opaque directories on disk. It owns no state and no place on disk; every tree is given as an open descriptor.
//
// It promises that nothing outside of that descriptor is ever read or written, whatever the archive says: names are cleaned, parents
// are resolved by openat2(2) below the root, the last part of a name is never followed, link targets are kept as plain data. A hostile
// archive either ends up inside the root or is refused with one error of kind errs.Invalid. Memory does not grow with file
// sizes, and by some tens of bytes per entry.
//
// A stream that was extracted with [Options.Meta] can be written again byte for byte by [Assemble], from the tree and
// the kept remains (headers, paddings), so that the tar itself need not be stored.
package tarfs

import (
	"io"
	"os"
	"strings"

	"corten.dev/corten/internal/errs"
)

// The names of deletions in a layer tar (image-spec, layer.md).
const (
	whPrefix = ".wh."
	whOpaque = ".wh..wh..opq"
	whMeta   = ".wh..wh."
)

// The xattrs by which overlayfs marks a directory that hides everything below it.
const (
	TrustedOpaque = "trusted.overlay.opaque"
	UserOpaque    = "user.overlay.opaque"
)

// Whiteouts says what ".wh." names (and character devices 0:0) mean.
type Whiteouts int

const (
	// Literal: they are names like any other (cp, export).
	Literal Whiteouts = iota
	// Convert: a layer's own directory for overlayfs; deletions become devices 0:0 and opaque marks, and back.
	Convert
	// ApplyTo: the tree already holds the layers below; deletions are carried out. Extraction only.
	ApplyTo
)

// Owner is a user and group number.
type Owner struct{ UID, GID int }

// Options change how [Extract] works; the zero value is right for a plain archive.
type Options struct {
	Whiteouts Whiteouts
	// OpaqueXattr is the mark of an opaque directory; empty means TrustedOpaque.
	OpaqueXattr string
	// Base gives the tree below, for Convert: directories that the archive implies but does not list take their attributes from there, and
	// hard links may point there. Called at most once, only when needed; the descriptor stays the caller's. May be nil.
	Base func() (*os.File, error)
	// Meta takes what Assemble needs beside the tree. Kept is a directory on the same file system, for files that one entry
	// of the stream wrote and a later one replaced. Both or none.
	Meta io.Writer
	Kept *os.File
	// Root gives the root what the archive says about it; Literal alone leaves it as it is.
	Root bool
	// Owner, when set, owns everything that is written, whatever the archive says.
	Owner *Owner
	// At is the directory below the root, without links in it, that the archive's names are relative to. Links that stand in
	// the way resolve in the whole root. Empty means the root.
	At string
	// NoOverwriteDirNonDir refuses to put a file where a directory is, and the other way round.
	NoOverwriteDirNonDir bool
	// Holes leaves out what is zero in files, 64 KiB and more of it: an archive says nothing of the holes that they had.
	Holes bool
	// MaxEntries bounds the number of entries, MaxBytes the archive as such; 0 is no bound. A file that leads beyond is refused by its header, before any of it is written
	// (a sparse one, whose header speaks of its holes as well, when the bound is reached).
	MaxEntries, MaxBytes int64
	// Skipped hears of attributes and devices that this file system or user may not have. May be nil.
	Skipped func(path, what string, err error)
}

// Stats is what an extraction wrote.
type Stats struct {
	Entries int64
	Bytes   int64 // content of regular files
	Root    bool  // the archive described the root directory itself
	Based   bool  // the archive left something unsaid that Base had to answer, or would have had to
}

func (o *Options) opaque() string {
	if o.OpaqueXattr == "" {
		return TrustedOpaque
	}
	return o.OpaqueXattr
}

// cleanName turns an archive's name into a path relative to the root, "" being the root itself. A name that leads out is refused.
func cleanName(name string) (string, error) {
	if len(name) > 1<<14 || strings.IndexByte(name, 0) >= 0 {
		return "", errs.New(errs.Invalid, "archive: name of %d bytes or with a zero byte", len(name))
	}
	parts := strings.Split(name, "/")
	out := parts[:0]
	for _, p := range parts {
		switch p {
		case "", ".":
		case "..":
			if len(out) == 0 {
				return "", errs.New(errs.Invalid, "archive: %q leads out of the root", name)
			}
			out = out[:len(out)-1]
		default:
			if len(p) > 255 {
				return "", errs.New(errs.Invalid, "archive: part of a name is %d bytes long, more than 255", len(p))
			}
			out = append(out, p)
		}
	}
	return strings.Join(out, "/"), nil
}

// split cuts a cleaned path into its directory and last part.
func split(p string) (dir, base string) {
	i := strings.LastIndexByte(p, '/')
	if i < 0 {
		return "", p
	}
	return p[:i], p[i+1:]
}

func join(dir, base string) string {
	switch {
	case dir == "":
		return base
	case base == "":
		return dir
	}
	return dir + "/" + base
}

// internalXattr tells the names that mean something to overlayfs itself; an archive may not set them, and they never go into one.
func internalXattr(name string) bool {
	return strings.HasPrefix(name, "trusted.overlay.") || strings.HasPrefix(name, "user.overlay.")
}
