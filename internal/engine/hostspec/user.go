package hostspec

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/moby/sys/user"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/safefs"
)

// Identity is a user resolved in an image.
type Identity struct {
	specs.User
	Home string
}

// ResolveUser finds a user ("", name, uid, each with :group) in the files below root.
func ResolveUser(root *os.File, spec string, groupAdd []string) (Identity, error) {
	passwd, err := safefs.ReadFile(root, "/etc/passwd", maxUsers)
	if err != nil && !Missing(err) {
		return Identity{}, err
	}
	group, err := safefs.ReadFile(root, "/etc/group", maxUsers)
	if err != nil && !Missing(err) {
		return Identity{}, err
	}
	def := user.ExecUser{Uid: 0, Gid: 0, Home: "/"}
	found, err := user.GetExecUser(spec, &def, bytes.NewReader(passwd), bytes.NewReader(group))
	if err != nil {
		return Identity{}, errs.New(errs.Invalid, "%w", err)
	}
	id := Identity{Home: found.Home}
	id.UID, id.GID = uint32(found.Uid), uint32(found.Gid)
	gids := []uint32{id.GID}
	for _, g := range found.Sgids {
		gids = append(gids, uint32(g))
	}
	if len(groupAdd) > 0 {
		added, err := user.GetAdditionalGroups(groupAdd, bytes.NewReader(group))
		if err != nil {
			return Identity{}, errs.New(errs.Invalid, "%w", err)
		}
		for _, g := range added {
			gids = append(gids, uint32(g))
		}
	}
	slices.Sort(gids[1:])
	id.AdditionalGids = slices.Compact(gids)
	return id, nil
}

// maxUsers bounds the files of users and groups: what an image contains is not to fill the engine's memory.
const maxUsers = 4 << 20

// Missing tells whether an error says that a file is not there.
func Missing(err error) bool {
	return err != nil && (errors.Is(err, fs.ErrNotExist) || strings.Contains(err.Error(), "not a directory"))
}

// Environment is what a process of the container gets: the engine's own words first, then one list above the other.
func Environment(hostname string, tty bool, home string, lists ...[]string) []string {
	n := 4
	for _, env := range lists {
		n += len(env)
	}
	all := make([]string, 0, n)
	all = append(all, "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOSTNAME="+hostname)
	if tty {
		all = append(all, "TERM=xterm")
	}
	for _, env := range lists {
		all = Override(all, env)
	}
	if home != "" && !slices.ContainsFunc(all, func(kv string) bool { return strings.HasPrefix(kv, "HOME=") }) {
		all = append(all, "HOME="+home)
	}
	return all
}

// Override replaces variables in place, appends new ones, and removes those of base that are named without a value: a name alone takes away what the image or the engine set,
// not what the same list sets itself, as Docker's does.
func Override(base, env []string) []string {
	given := len(base)
	for _, kv := range env {
		key, _, hasValue := strings.Cut(kv, "=")
		i := slices.IndexFunc(base, func(have string) bool { k, _, _ := strings.Cut(have, "="); return k == key })
		switch {
		case !hasValue && i >= 0 && i < given:
			base = slices.Delete(base, i, i+1)
			given--
		case !hasValue:
		case i >= 0:
			base[i] = kv
		default:
			base = append(base, kv)
		}
	}
	return base
}
