// Package system is the engine's service for itself: what it is, what happens in it, what it takes.
//
// It owns the event bus. It does not know HTTP. It promises that none of its answers waits for a container.
package system

import (
	"context"
	"net/netip"
	"time"

	"corten.dev/corten/internal/events"
	"corten.dev/corten/internal/filter"
	"corten.dev/corten/internal/image"
)

// Info is what `info` shows of the engine.
type Info struct {
	ID, Name                                                                                        string
	Containers, Running, Paused, Stopped, Images                                                    int
	Driver                                                                                          string
	DriverStatus                                                                                    [][2]string
	CgroupDriver, CgroupVersion                                                                     string
	KernelVersion, OperatingSystem, OSVersion                                                       string
	OSType, Architecture                                                                            string
	NCPU                                                                                            int
	MemTotal                                                                                        int64
	DataRoot                                                                                        string
	Debug                                                                                           bool
	Goroutines, FDs                                                                                 int
	Labels                                                                                          []string
	DefaultRuntime                                                                                  string
	Runtimes                                                                                        map[string]Runtime
	SecurityOptions                                                                                 []string
	Warnings                                                                                        []string
	MemoryLimit, SwapLimit, CPUCfsPeriod, CPUCfsQuota, CPUShares, CPUSet, PidsLimit, OomKillDisable bool
	IPv4Forwarding                                                                                  bool
	LogDriver                                                                                       string
	LogDrivers, VolumeDrivers, NetworkDrivers                                                       []string
	HTTPProxy, HTTPSProxy, NoProxy                                                                  string
	InitBinary                                                                                      string
	AddressPools                                                                                    []AddressPool // that networks without a subnet get theirs from; empty: the engine's own
	CDISpecDirs, CDIDevices                                                                         []string      // folders with descriptions of devices, and the devices' names
}

// AddressPool is where networks get subnets from.
type AddressPool struct {
	Base netip.Prefix
	Size int // length of each subnet's prefix
}

// Runtime is how an OCI runtime is called.
type Runtime struct {
	Path string
	Args []string
}

// Unknown is the size of what is not counted yet, or cannot be.
const Unknown = -1

// API is everything that doors may ask of this service.
type API interface {
	Info(ctx context.Context) (Info, error)
	// Events calls fn for every event that matches, remembered ones first, until ctx ends, until passed, or fn fails.
	Events(ctx context.Context, since, until time.Time, filters filter.Args, fn func(events.Event) error) error
	// TreeSizes and VolumeSizes tell what containers' writable trees and volumes hold, in the order asked for; [Unknown] is what nobody counted yet. What was
	// counted a while ago is counted again in the background, for which they wait half a second and no more: then they tell what is known.
	TreeSizes(ctx context.Context, containers []string) []int64
	VolumeSizes(ctx context.Context, names []string) []int64
	// ImageUsage is what images take, image by image.
	ImageUsage(ctx context.Context) (image.DiskUsage, error)
}
