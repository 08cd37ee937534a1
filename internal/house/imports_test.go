package house

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "corten.dev/corten/"

// room says what a folder below internal/ (and all below it) may import of ours. "may" are folders below internal/; a folder opens all below it.
// Every package may use itself, and what lies below it.
type room struct {
	room string
	may  string
	why  string
}

const (
	words = "errs filter units version reference manifest"
	tools = words + " task record events safefs tarfs compressed linux"
)

var table = []room{
	// Floor 0: words.
	{"errs", "", "the error kinds stand below everything"},
	{"filter", "errs", "a pure value"},
	{"version", "", "two strings"},
	{"reference", "errs", "names of images, for the engine and the client alike"},
	{"manifest", "errs", "what registries and layouts keep, as pure values"},
	{"buildwire", "errs", "the words between the client and its door for builds, without BuildKit's weight"},
	{"runwire", "", "the words between the client and its engine for a run in one request"},
	// Floor 1: tools. They know words and, where named, each other.
	{"task", "errs", "undo stacks know nothing"},
	{"events", words, "a bus of plain values"},
	{"record", words, "named bytes on disk"},
	{"safefs", words + " linux", "paths by descriptor"},
	{"probe", words + " linux", "one look at a service, from inside a network namespace"},
	{"tarfs", words + " safefs linux", "trees to tar and back"},
	{"compressed", words, "bytes and what they were compressed from"},
	{"http1", "", "a small HTTP/1.1 client, for commands that start fast and calls of plugins"},
	{"plugin", words + " http1", "programs outside that serve the engine; it knows no noun"},
	{"linux", words, "kernel facilities know no container words"},
	// Floor 2: rooms. They do not know each other, except through the doors opened here.
	{"content", tools, "blobs by digest"},
	{"snapshot", tools, "trees know no images"},
	{"image", tools + " snapshot content", "an image is a config on a chain of layers, kept as blobs"},
	{"runtime", tools, "a bundle in, a process out"},
	{"logs", tools, "lines know no containers"},
	{"logs/remote", tools + " logs plugin", "the log driver that is a plugin"},
	{"monitor", tools + " logs", "a monitor writes the log"},
	{"network", tools + " plugin", "an endpoint has an opaque owner"},
	{"network/egress", "errs linux network/dns", "a list knows addresses, bridges and names, and no network"},
	{"volume/driver", words, "the contract of drivers, light enough for the client"},
	{"volume/remote", words + " plugin volume/driver", "the driver that is a plugin, likewise"},
	{"volume", tools + " plugin", "a volume is a directory and a record of who uses it"},
	{"registry/client", words + " task linux/tcp", "the distribution protocol, asking"},
	{"registry/server", tools, "the distribution protocol, answering; its disk driver keeps blobs"},
	{"registry/server/cache", words + " task registry/client registry/server", "pull-through asks upstreams by the client's contract"},
	{"registry/program", tools, "the registry as a program, which the engine's binary carries"},
	{"registry/serve", tools + " registry", "the registry's command line joins its rooms"},
	{"build", tools + " snapshot content image", "LLB to trees and images; what it needs of registries, networks and the runtime it asks for by interfaces of its own"},
	{"container", words + " image network", "the stored record embeds what images and networks store"},
	// Floor 3: the engine's services.
	{"engine", tools + " probe content snapshot image runtime logs monitor network volume container registry/client build", "one service per noun over the rooms"},
	// Floor 4: doors translate, never decide.
	{"server", words + " compressed buildwire runwire task events container image network volume snapshot runtime build engine", "the Docker API"},
	{"buildkitapi", words + " task build engine", "BuildKit's clients; its goroutines have walls"},
	{"metrics", words + " volume runtime engine", "figures for those who count"},
	{"runtimecli", tools + " runtime", "the OCI command line of the runtime room"},
	{"cli", words + " buildwire runwire http1 plugin volume/driver volume/remote", "the client knows the API, not the engine"},
	{"settings", words + " registry/client/rules", "what an operator says"},
	{"busyboxtree", "", "a root file system for tests and measures"},
	{"bench", words + " busyboxtree", "whole commands, from outside"},
	{"demo", words, "whole commands, from outside"},
	{"proof", "", "tests of the whole"},
	{"realbuild", "", "tests of builds with packages from the network"},
	{"enginetest", words + " busyboxtree", "runs the real binaries for tests"},
	{"killtest", "", "kills tests; knows no room"},
	{"script", words, "runs the scripts of the verbs"},
	{"house", "", "reads source, imports none"},
}

func repoRoot(t *testing.T) string {
	t.Helper()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	return root
}

// goFiles calls fn for every Go file of ours that is not a test, with its folder relative to the repository.
func goFiles(t *testing.T, fn func(dir, path string)) {
	t.Helper()
	root := repoRoot(t)
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			name := d.Name()
			if name == "testdata" || strings.HasPrefix(name, ".") && path != root || name == "tools" && filepath.Dir(path) == root {
				return filepath.SkipDir
			}
			if _, err := os.Stat(filepath.Join(path, "go.mod")); err == nil && path != root {
				return filepath.SkipDir // a module of its own
			}
			return nil
		}
		if strings.HasSuffix(path, ".go") && !strings.HasSuffix(path, "_test.go") {
			rel, err := filepath.Rel(root, filepath.Dir(path))
			if err != nil {
				return err
			}
			fn(rel, path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// under tells whether folder is room or lies below it.
func under(folder, room string) bool {
	return folder == room || strings.HasPrefix(folder, room+"/")
}

func ruleFor(folder string) (room, bool) {
	var best room
	found := false
	for _, r := range table {
		if under(folder, r.room) && len(r.room) >= len(best.room) {
			best, found = r, true
		}
	}
	return best, found
}

// testHelpers may be imported by nobody but tests; they may look into any room.
func testHelper(folder string) bool {
	return strings.HasSuffix(folder, "test") || strings.HasSuffix(folder, "/memory")
}

func TestImports(t *testing.T) {
	fset := token.NewFileSet()
	used := map[string]bool{}
	goFiles(t, func(dir, path string) {
		folder, ok := strings.CutPrefix(dir, "internal/")
		if !ok {
			return // cmd joins everything
		}
		rule, ok := ruleFor(folder)
		if !ok {
			t.Errorf("%s: the import table has no line for this room", dir)
			return
		}
		used[rule.room] = true
		file, err := parser.ParseFile(fset, path, nil, parser.ImportsOnly)
		if err != nil {
			t.Errorf("%s: %v", path, err)
			return
		}
		for _, imp := range file.Imports {
			name, err := strconv.Unquote(imp.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			checkImport(t, path, folder, rule, name)
		}
	})
	for _, r := range table {
		if !used[r.room] {
			t.Errorf("the line of room %q matches no package: remove it", r.room)
		}
	}
}

func checkImport(t *testing.T, path, folder string, rule room, name string) {
	t.Helper()
	ours, ok := strings.CutPrefix(name, module+"internal/")
	if !ok {
		checkForeign(t, path, folder, name)
		return
	}
	if under(ours, rule.room) || testHelper(folder) {
		return
	}
	if testHelper(ours) {
		t.Errorf("%s imports the test helper %s", path, ours)
		return
	}
	for _, may := range strings.Fields(rule.may) {
		if under(ours, may) {
			return
		}
	}
	t.Errorf("%s: room %q must not know %q (%s)", path, rule.room, ours, rule.why)
}

// Foreign packages that are for some rooms only, each with the reason.
var foreign = []struct{ prefix, rooms, why string }{
	{"net/http", "server buildkitapi cli demo bench/ship metrics engine/images registry build/source probe", "HTTP belongs to the doors and the registry; image import and ADD fetch a URL"},
	{"github.com/moby/moby/api", "server cli", "wire types belong to the doors"},
	{"github.com/moby/moby/client", "", "the reference client is a judge in tests, not a part"},
	{"github.com/distribution/reference", "", "430 KB of regular expressions at start; tests compare with it"},
	{"github.com/spf13/cobra", "cli", "flags belong to the command line"},
	{"github.com/spf13/pflag", "cli settings runtimecli registry/serve", "flags belong to the command lines"},
	{"github.com/google/nftables", "", "internal/linux/nft needs 7 µs where it needs 250"},
	{"github.com/vishvananda/netlink", "", "internal/linux/netlink batches, and starts nothing"},
	{"golang.org/x/sys/unix", "linux safefs tarfs record build/cache build/checksum build/ops build/source build/step content image logs monitor network registry/server/disk registry/serve runtime runtimecli snapshot volume cli/copied cli/term",
		"system calls belong to the tools and the rooms: the engine, its doors and the stored records ask internal/linux and internal/safefs"},
	{"github.com/cilium/ebpf", "linux", "device programs belong to the cgroup tool"},
}

func checkForeign(t *testing.T, path, folder, name string) {
	t.Helper()
	for _, f := range foreign {
		if !under(name, f.prefix) {
			continue
		}
		if !slices.ContainsFunc(strings.Fields(f.rooms), func(r string) bool { return under(folder, r) }) && !testHelper(folder) {
			t.Errorf("%s imports %s: %s", path, name, f.why)
		}
	}
}
