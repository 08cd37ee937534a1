// Package driver is the contract of those outside the engine who keep volumes: Docker's volume plugin protocol, as Go.
//
// It owns nothing. It knows neither HTTP nor the engine's records. It promises that a caller can tell three kinds of failure apart: the driver refused (its own words); it did not answer, and nothing
// happened (errs.Unavailable); it did not answer, and nobody knows ([Uncertain] as well).
package driver

import (
	"context"
	"errors"
	"time"
	"unicode/utf8"

	"corten.dev/corten/internal/errs"
)

// Interface is the protocol's name for what a volume driver implements.
const Interface = "VolumeDriver"

// Uncertain marks the error of a call that may have been carried out.
var Uncertain = errors.New("may have been carried out")

// Volume is one volume as its driver tells of it.
type Volume struct {
	Name       string
	Mountpoint string         // absolute; empty while it is not mounted, if the driver likes
	Created    time.Time      // zero: not told
	Status     map[string]any // the driver's own words
}

// Capabilities tell what a driver is.
type Capabilities struct {
	// Global tells that its volumes are the same ones on all hosts that have the driver.
	Global bool
}

// Driver keeps volumes. It has the nine calls of the protocol, of which none can be left out: it is wide because that is.
//
// A volume is made by Create, used between Mount and Unmount, and unmade by Remove. The id of Mount and Unmount is whom it is for: a driver counts ids, and lets go of the volume with the last one. Mount and
// Create wait for a driver that is about to come up; nobody needs the others so much.
type Driver interface {
	Name() string
	// Create makes a volume. Whether it may exist already is the driver's to say.
	Create(ctx context.Context, name string, opts map[string]string) error
	Remove(ctx context.Context, name string) error
	// Mount makes the volume's files reachable and returns the absolute path of the directory.
	Mount(ctx context.Context, name, id string) (string, error)
	Unmount(ctx context.Context, name, id string) error
	// Path is where a mounted volume is; it may be empty when it is not.
	Path(ctx context.Context, name string) (string, error)
	// Get and List ask only.
	Get(ctx context.Context, name string) (Volume, error)
	List(ctx context.Context) ([]Volume, error)
	Capabilities(ctx context.Context) (Capabilities, error)
}

// maxName bounds the name of a volume, in bytes.
const maxName = 255

// CheckName refuses what can be no volume's name. It allows more than the local driver does: some drivers have pools, written with slashes.
func CheckName(name string) error {
	ok := name != "" && len(name) <= maxName && utf8.ValidString(name) && name[0] != '/'
	for _, r := range name {
		ok = ok && r >= ' ' && r != 0x7f
	}
	if !ok {
		return errs.New(errs.Invalid, "%.80q: not a name of a volume", name)
	}
	return nil
}
