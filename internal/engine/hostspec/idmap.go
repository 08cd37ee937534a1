package hostspec

import (
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"corten.dev/corten/internal/errs"
)

// AutoIDMap is the mapping that the engine makes: the owner of the mount's source appears as the container's user, and the other way round.
const AutoIDMap = "auto"

// maxRanges is how many ranges the kernel takes in one mapping (user_namespaces(7)).
const maxRanges = 340

// Mapping is how ids of a file system appear on a mount of it. In the words of the OCI specification the ids of the file system are the container's, those on the
// mount the host's.
type Mapping struct{ UIDs, GIDs []specs.LinuxIDMapping }

// ParseIDMap reads what follows idmap= in a mount option, nearly as podman does: "uids=0-1000-1;gids=0-1000-1". Ranges are split by "#"; each is the first id in the
// file system, the first id on the mount, and the length. Where gids are left out, they are mapped as uids are. Empty text and "auto" give the zero Mapping.
func ParseIDMap(text string) (Mapping, error) {
	var m Mapping
	if text == "" || text == AutoIDMap {
		return m, nil
	}
	bad := func(why string) (Mapping, error) {
		return Mapping{}, errs.New(errs.Invalid, "invalid idmap %q: %s", text, why)
	}
	for part := range strings.SplitSeq(text, ";") {
		key, list, _ := strings.Cut(part, "=")
		into := &m.UIDs
		switch key {
		case "uids":
		case "gids":
			into = &m.GIDs
		default:
			return bad("want uids=FS-MOUNT-LENGTH and gids=FS-MOUNT-LENGTH, split by \";\"")
		}
		if *into != nil {
			return bad(key + " is given twice")
		}
		if strings.HasPrefix(list, "@") {
			return bad("a mapping relative to a user namespace (@) needs a container that has one of its own")
		}
		ranges, why := idRanges(list)
		if why != "" {
			return bad(why)
		}
		*into = ranges
	}
	switch {
	case m.UIDs == nil:
		m.UIDs = m.GIDs
	case m.GIDs == nil:
		m.GIDs = m.UIDs
	}
	return m, nil
}

// idRanges reads "0-1000-1#5-5-10"; why is empty when it is right.
func idRanges(list string) (ranges []specs.LinuxIDMapping, why string) {
	for text := range strings.SplitSeq(list, "#") {
		num := strings.Split(text, "-")
		if len(num) != 3 {
			return nil, "a range is three numbers: " + strconv.Quote(text)
		}
		var n [3]uint32
		for i := range num {
			v, err := strconv.ParseUint(num[i], 10, 32)
			if err != nil {
				return nil, strconv.Quote(num[i]) + " is no id"
			}
			n[i] = uint32(v)
		}
		const noID = 1<<32 - 1 // (uid_t)-1 is nobody's
		if n[2] == 0 || uint64(n[0])+uint64(n[2]) > noID || uint64(n[1])+uint64(n[2]) > noID {
			return nil, "the range " + strconv.Quote(text) + " is empty or too long"
		}
		ranges = append(ranges, specs.LinuxIDMapping{ContainerID: n[0], HostID: n[1], Size: n[2]})
	}
	if len(ranges) > maxRanges {
		return nil, "more than " + strconv.Itoa(maxRanges) + " ranges"
	}
	overlap := func(a, b, n, m uint32) bool {
		return uint64(a) < uint64(b)+uint64(m) && uint64(b) < uint64(a)+uint64(n)
	}
	for i, a := range ranges {
		for _, b := range ranges[:i] {
			if overlap(a.ContainerID, b.ContainerID, a.Size, b.Size) || overlap(a.HostID, b.HostID, a.Size, b.Size) {
				return nil, "two ranges overlap"
			}
		}
	}
	return ranges, ""
}

// OwnerMapping maps the owner of a source to a container's user; everybody else stays who they are, but that nobody on the mount is taken for those two. The kernel shows
// ids without a mapping as nobody's, and refuses to write them. It is the zero Mapping where nothing is to be mapped.
func OwnerMapping(ownerUID, ownerGID, uid, gid uint32) Mapping {
	if ownerUID == uid && ownerGID == gid {
		return Mapping{}
	}
	return Mapping{UIDs: swapped(ownerUID, uid), GIDs: swapped(ownerGID, gid)}
}

// swapped maps one id, and all others but that which takes its place to themselves.
func swapped(fs, mount uint32) []specs.LinuxIDMapping {
	const end = 1<<32 - 1
	if fs == mount {
		return []specs.LinuxIDMapping{{ContainerID: 0, HostID: 0, Size: end}}
	}
	list := []specs.LinuxIDMapping{{ContainerID: fs, HostID: mount, Size: 1}}
	cuts := []uint32{fs, mount}
	slices.Sort(cuts)
	from := uint32(0)
	for _, cut := range append(cuts, end) {
		if cut > from {
			list = append(list, specs.LinuxIDMapping{ContainerID: from, HostID: from, Size: cut - from})
		}
		from = cut + 1
	}
	return list
}
