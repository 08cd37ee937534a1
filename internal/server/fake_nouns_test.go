package server_test

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"corten.dev/corten/internal/container"
	"corten.dev/corten/internal/engine/images"
	"corten.dev/corten/internal/engine/networks"
	"corten.dev/corten/internal/engine/system"
	"corten.dev/corten/internal/engine/volumes"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/events"
	"corten.dev/corten/internal/filter"
	"corten.dev/corten/internal/image"
	"corten.dev/corten/internal/manifest"
	"corten.dev/corten/internal/network"
	"corten.dev/corten/internal/volume"
)

func img() image.Image {
	made := birth
	i := image.Image{ID: imgID, Tags: []string{"busybox:latest"}, Digests: []string{"busybox@" + diffA.String()}, Size: 4 << 20, Tagged: birth}
	i.Config = image.Config{Created: &made, Architecture: "amd64", OS: "linux", Comment: "c", RootFS: image.RootFS{Type: "layers", DiffIDs: []digest.Digest{diffA, diffB}},
		History: []image.History{{CreatedBy: "a"}, {CreatedBy: "b"}, {CreatedBy: "CMD", EmptyLayer: true}}}
	i.Config.Config.Cmd, i.Config.Config.Env = []string{"sh"}, []string{"PATH=/bin"}
	return i
}

type fakeImages struct{ e *engine }

var _ images.API = fakeImages{}

func (f fakeImages) List(_ context.Context, o images.ListOptions) ([]images.Summary, error) {
	other := img()
	other.ID, other.Tags, other.Digests = digest.Digest("sha256:"+strings.Repeat("2", 64)), nil, nil
	other.Config.RootFS.DiffIDs = []digest.Digest{diffA}
	return []images.Summary{{Image: img(), Containers: 2}, {Image: other, Dangling: true}}, f.e.note("images", o)
}
func (f fakeImages) Inspect(_ context.Context, ref string) (image.Image, error) {
	if strings.HasPrefix(ref, "nosuch") {
		return image.Image{}, errs.New(errs.NotFound, "No such image: %s", ref)
	}
	return img(), f.e.note("image", ref)
}
func (f fakeImages) InspectFor(ctx context.Context, ref string, p manifest.Platform) (image.Image, error) {
	if p.Arch == "riscv64" {
		return image.Image{}, errs.New(errs.NotFound, "image with reference %s was found but does not provide the specified platform (%s)", ref, p)
	}
	return f.Inspect(ctx, ref)
}
func (f fakeImages) Manifests(context.Context, digest.Digest) ([]images.Manifest, error) {
	here := img()
	p := ocispec.Platform{OS: "linux", Architecture: "amd64"}
	return []images.Manifest{
		{Part: image.Part{Kind: image.PartImage, Descriptor: ocispec.Descriptor{Digest: diffA, Size: 5, Platform: &p}, Image: &here, Available: true, Content: 7}, Containers: []string{webID}},
		{Part: image.Part{Kind: image.PartAttestation, Descriptor: ocispec.Descriptor{Digest: diffB}, About: diffA}},
	}, nil
}
func (f fakeImages) RemoveFor(_ context.Context, ref string, p manifest.Platform, force bool) ([]image.Removed, error) {
	return []image.Removed{{Deleted: imgID.String()}}, f.e.note("rmi", []any{ref, p.String(), force})
}
func (f fakeImages) History(_ context.Context, ref string) ([]image.HistoryEntry, error) {
	return []image.HistoryEntry{{ID: imgID.String(), Created: birth, CreatedBy: "CMD", Tags: []string{"busybox:latest"}}, {ID: "<missing>", CreatedBy: "b", Size: 1 << 20}, {ID: "<missing>", CreatedBy: "a", Size: 3 << 20}}, nil
}
func (f fakeImages) Tag(_ context.Context, ref, name string) error {
	return f.e.note("tag", []string{ref, name})
}
func (f fakeImages) Remove(_ context.Context, ref string, force, prune bool) ([]image.Removed, error) {
	return []image.Removed{{Untagged: ref}, {Deleted: imgID.String()}}, f.e.note("rmi", []any{ref, force, prune})
}
func (f fakeImages) Prune(_ context.Context, args filter.Args) (images.Pruned, error) {
	return images.Pruned{Removed: []image.Removed{{Deleted: imgID.String()}}, Space: 5}, f.e.note("prune", args)
}
func (f fakeImages) Load(_ context.Context, r io.Reader, _ []manifest.Platform, p image.Progress) ([]string, error) {
	p("aaaa", "Loading layer", 1, 2)
	b, err := io.ReadAll(r)
	if string(b) == "broken" {
		return nil, errs.New(errs.Invalid, "read the archive: broken")
	}
	p("aaaa", "Loading layer", 2, 2)
	return []string{"busybox:latest", imgID.String()}, err
}
func (f fakeImages) Have(_ context.Context, chains []digest.Digest) ([]digest.Digest, error) {
	return chains, nil
}

func (f fakeImages) Save(_ context.Context, refs []string, _ images.SaveOptions, w io.Writer) error {
	if refs[0] == "nosuch" {
		return errs.New(errs.NotFound, "No such image: nosuch")
	}
	_, err := fmt.Fprint(w, "tar of ", strings.Join(refs, " "))
	return err
}
func (f fakeImages) Import(_ context.Context, r io.Reader, o image.ImportOptions) (image.Image, error) {
	b, err := io.ReadAll(r)
	if err != nil {
		return image.Image{}, err
	}
	return img(), f.e.note("import", []any{string(b), o})
}

type fakeVolumes struct{ e *engine }

var _ volumes.API = fakeVolumes{}

func vol() volume.Volume {
	return volume.Volume{Name: "data", Driver: "local", Mountpoint: "/data/volumes/data/_data", Created: birth}
}
func (f fakeVolumes) Create(_ context.Context, o volume.CreateOptions) (volume.Volume, error) {
	return vol(), f.e.note("volume", o)
}
func (f fakeVolumes) List(_ context.Context, args filter.Args) ([]volume.Volume, []string, error) {
	return []volume.Volume{vol()}, nil, f.e.note("volumes", args)
}
func (f fakeVolumes) Known(context.Context) ([]volume.Volume, error) {
	return []volume.Volume{vol()}, nil
}
func (f fakeVolumes) Inspect(_ context.Context, name string) (volume.Volume, error) {
	if name != "data" {
		return volume.Volume{}, errs.New(errs.NotFound, "get %s: no such volume", name)
	}
	return vol(), nil
}
func (f fakeVolumes) Remove(_ context.Context, name string, force bool) error {
	if name != "data" {
		return errs.New(errs.NotFound, "get %s: no such volume", name)
	}
	return errs.New(errs.Conflict, "remove data: volume is in use - [%s]", webID)
}
func (f fakeVolumes) Prune(_ context.Context, args filter.Args) (volumes.Pruned, error) {
	return volumes.Pruned{Deleted: []string{"data"}, Space: 3}, f.e.note("prune", args)
}
func (f fakeVolumes) Users(string) int { return 1 }

func (f fakeVolumes) Snapshot(_ context.Context, from volumes.Source, name string) (volume.Snapshot, error) {
	return volume.Snapshot{Name: from.Volume + name}, nil
}
func (f fakeVolumes) Snapshots(context.Context, string) ([]volume.Snapshot, error) { return nil, nil }
func (f fakeVolumes) RemoveSnapshot(context.Context, string, string) error         { return nil }
func (f fakeVolumes) Restore(context.Context, string, string) error                { return nil }
func (f fakeVolumes) Clone(_ context.Context, _ volumes.Source, o volume.CreateOptions) (volume.Volume, error) {
	return volume.Volume{Name: o.Name}, nil
}
func (f fakeVolumes) Rename(_ context.Context, _, to string) (volume.Volume, error) {
	return volume.Volume{Name: to}, nil
}
func (f fakeVolumes) Export(_ context.Context, from volumes.Source, w io.Writer) error {
	_, err := io.WriteString(w, from.Volume+from.Snapshot)
	return err
}
func (f fakeVolumes) Import(_ context.Context, o volume.CreateOptions, r io.Reader) (volume.Volume, error) {
	_, err := io.Copy(io.Discard, r)
	return volume.Volume{Name: o.Name, Labels: o.Labels}, err
}

type fakeNetworks struct{ e *engine }

var _ networks.API = fakeNetworks{}

func blue() networks.View {
	nw := network.Network{ID: netID, Name: "blue", Driver: "bridge", Created: birth, EnableIPv4: true,
		IPAM: network.IPAM{Driver: "default", Pools: []network.Pool{{Subnet: netip.MustParsePrefix("10.1.0.0/24"), Gateway: netip.MustParseAddr("10.1.0.1")}}}}
	return networks.View{Network: nw, Usage: []network.SubnetUsage{{Subnet: nw.IPAM.Pools[0].Subnet, InUse: 4, Free: 252}}, Containers: map[string]networks.Member{webID: {Name: "web", Endpoint: web().Sandbox.Endpoints[1]}}}
}
func (f fakeNetworks) Create(_ context.Context, nw network.Network) (network.Network, error) {
	err := f.e.note("network", nw)
	nw.ID = netID
	return nw, err
}
func (f fakeNetworks) List(_ context.Context, args filter.Args) ([]networks.View, error) {
	none := networks.View{Network: network.Network{ID: strings.Repeat("0", 64), Name: "none", Driver: "null", Created: birth, EnableIPv4: true, Predefined: true}}
	return []networks.View{blue(), none}, f.e.note("networks", args)
}
func (f fakeNetworks) Inspect(_ context.Context, ref string) (networks.View, error) {
	if ref != "blue" && ref != netID {
		return networks.View{}, errs.New(errs.NotFound, "network %s not found", ref)
	}
	return blue(), nil
}
func (f fakeNetworks) Update(_ context.Context, _ string, change networks.Change) ([]string, error) {
	return []string{"add option x"}, f.e.note("update", change)
}
func (f fakeNetworks) Remove(_ context.Context, ref string) error { return f.e.note("rm-network", ref) }
func (f fakeNetworks) Prune(_ context.Context, args filter.Args) ([]string, error) {
	return []string{"blue"}, f.e.note("prune", args)
}
func (f fakeNetworks) Connect(_ context.Context, ref, ctr string, ep container.EndpointSettings) error {
	return f.e.note("connect", []any{ref, ctr, ep})
}
func (f fakeNetworks) Disconnect(_ context.Context, ref, ctr string, force bool) error {
	return f.e.note("disconnect", []any{ref, ctr, force})
}

type fakeSystem struct{ e *engine }

var _ system.API = fakeSystem{}

func (f fakeSystem) Info(context.Context) (system.Info, error) {
	return system.Info{ID: "id", Name: "host", Containers: 2, Running: 1, Stopped: 1, Images: 1, Driver: "overlay", OSType: "linux", Architecture: "x86_64", NCPU: 2,
		MemTotal: 1 << 30, KernelVersion: "6.1.0", OperatingSystem: "Debian", DataRoot: "/data", CgroupDriver: "cgroupfs", CgroupVersion: "2", DefaultRuntime: "corten",
		Runtimes: map[string]system.Runtime{"corten": {Path: ""}}, LogDriver: "local", LogDrivers: []string{"local", "none"}, VolumeDrivers: []string{"local"}, NetworkDrivers: []string{"bridge", "host", "none"}}, f.e.note("info", nil)
}
func (f fakeSystem) Events(ctx context.Context, since, until time.Time, args filter.Args, fn func(events.Event) error) error {
	f.e.note("events", args)
	if err := fn(events.Event{Type: "container", Action: "start", ID: webID, Attributes: map[string]string{"image": "busybox", "name": "web"}, Time: birth}); err != nil {
		return err
	}
	if until.IsZero() {
		<-ctx.Done()
	}
	return ctx.Err()
}
func (f fakeSystem) TreeSizes(_ context.Context, ids []string) []int64 {
	return slices.Repeat([]int64{12}, len(ids))
}
func (f fakeSystem) VolumeSizes(_ context.Context, names []string) []int64 {
	return slices.Repeat([]int64{1024}, len(names))
}
func (f fakeSystem) ImageUsage(context.Context) (image.DiskUsage, error) {
	return image.DiskUsage{Images: []image.ImageUsage{{ID: imgID, Size: 4 << 20, Shared: 3 << 20, InUse: true}, {ID: digest.Digest("sha256:" + strings.Repeat("2", 64)), Size: 4 << 20, Shared: 3 << 20}},
		LayerBytes: 5 << 20, Reclaimable: 1 << 20}, nil
}
