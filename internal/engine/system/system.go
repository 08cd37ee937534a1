// Package system is the engine's service for itself: what it is, what happens in it, what it takes.
//
// It owns the event bus. It does not know HTTP. It promises that none of its answers waits for a container.
package system

import (
	"context"
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
	Runtimes                                                                                        map[string]string
	SecurityOptions                                                                                 []string
	Warnings                                                                                        []string
	MemoryLimit, SwapLimit, CPUCfsPeriod, CPUCfsQuota, CPUShares, CPUSet, PidsLimit, OomKillDisable bool
	IPv4Forwarding                                                                                  bool
	LogDrivers, VolumeDrivers, NetworkDrivers                                                       []string
	HTTPProxy, HTTPSProxy, NoProxy                                                                  string
	InitBinary                                                                                      string
}

// Usage is one line of `system df`.
type Usage struct {
	Images, ActiveImages                int
	ImageSize, ImageReclaimable         int64
	Containers, ActiveContainers        int
	ContainerSize, ContainerReclaimable int64
	Volumes, ActiveVolumes              int
	VolumeSize, VolumeReclaimable       int64
}

// API is everything that doors may ask of this service.
type API interface {
	Info(ctx context.Context) (Info, error)
	// Events calls fn for every event that matches, remembered ones first, until ctx ends, until passed, or fn fails.
	Events(ctx context.Context, since, until time.Time, filters filter.Args, fn func(events.Event) error) error
	Usage(ctx context.Context) (Usage, error)
	// ImageUsage is the images' part of it, image by image.
	ImageUsage(ctx context.Context) (image.DiskUsage, error)
}
