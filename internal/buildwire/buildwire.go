// Package buildwire is the protocol between the command line and the engine's door for builds, POST /corten/build.
//
// It owns the frames on the connection after its upgrade, the streams within it, and the words that travel: both sides use it, and neither needs BuildKit's packages for it.
// It opens no sockets and no files. It promises that one stream that is not read holds up no other, that memory per stream is bounded whatever the peer does, and that a frame that
// cannot be is an error of the connection, never a guess.
//
// # The conversation
//
//	client                                                      door
//	POST /corten/build, Upgrade: tcp, Request as JSON ────────▶ checks, starts the build
//	◀──────────────────────────────────────────── 101 UPGRADED
//	◀═══════ status* ════════════════ what happens, build.Status as JSON, while …
//	◀─ open {"ask":"context",…} ────  … the engine asks for what only the client has: one stream for each question
//	── answer, data, descriptor, end ▶
//	◀═══════ result or failure ══════ the last frame; the client closes
//
// A client that closes the connection cancels its build. An engine that closes it without a last frame has died.
//
// # Frames
//
//	[1 kind][3 zero][4 stream][4 length] data      numbers big endian; length at most MaxFrame
//
// Stream 0 is the build's own: only status, result and failure. The others are opened by the door, which numbers them from 1, and are used both ways:
//
//	open        the question: an Ask as JSON
//	answer      a JSON value, what it means depends on the question
//	data        bytes of the stream
//	credit      4 bytes: so many more bytes of data may be sent; Window may be without asking
//	end         nothing more comes from this side
//	fail        an Error as JSON; the stream is over, both ways
//	descriptor  a file descriptor lies beside this frame (unix sockets on one host); one that is missing was lost by something in between
package buildwire

import (
	"encoding/json"
	"errors"
	"time"

	"corten.dev/corten/internal/errs"
)

// Path of the door, and of its plain requests below it.
const (
	Path        = "/corten/build"
	UsagePath   = Path + "/usage"
	PrunePath   = Path + "/prune"
	HistoryPath = Path + "/history"
	StatusPath  = Path + "/status"
	ArchivePath = Path + "/history/archive"
	BakePath    = Path + "/bake"
	FetchPath   = Path + "/fetch"
	AboutPath   = Path + "/about"
)

// MaxFrame is the most that a frame carries, Window what may be sent of a stream before the other side has read of it.
const (
	MaxFrame = 1 << 20
	Window   = 512 << 10
	piece    = 64 << 10 // of a data frame, so that streams take turns
)

// Kind says what a frame is.
type Kind byte

// The kinds of frames.
const (
	Status     Kind = 's'
	Result     Kind = 'r'
	Failure    Kind = 'x'
	open       Kind = 'o'
	answer     Kind = 'a'
	data       Kind = 'd'
	credit     Kind = 'c'
	end        Kind = 'e'
	fail       Kind = 'f'
	descriptor Kind = 'h'
)

// Request is one build. Attributes, exports and caches are those of BuildKit's control API, as buildx sends them.
type Request struct {
	Ref          string            `json:"ref"`
	Frontend     string            `json:"frontend"`
	Attrs        map[string]string `json:"attrs,omitempty"`
	Exports      []Export          `json:"exports,omitempty"`
	CacheFrom    []Cache           `json:"cacheFrom,omitempty"`
	CacheTo      []Cache           `json:"cacheTo,omitempty"`
	Entitlements []string          `json:"entitlements,omitempty"`
	// Policy is BuildKit's source policy.
	Policy json.RawMessage `json:"policy,omitempty"`
	// What the client has: names of directories, ids of secrets and of agents. Values of secrets are never here.
	Contexts []string `json:"contexts,omitempty"`
	Secrets  []string `json:"secrets,omitempty"`
	SSH      []string `json:"ssh,omitempty"`
	// Descriptors: directories can be handed over as descriptors.
	Descriptors bool `json:"descriptors,omitempty"`
	// Shell: a failed step is to be asked about (AskShell) before what it left is taken away.
	Shell bool `json:"shell,omitempty"`
	// Provenance "min" or "max": the answer tells how the results came to be ("buildx.build.provenance").
	Provenance string `json:"provenance,omitempty"`
	// Links are builds whose results this one uses, by the name of the context that each is.
	Links map[string]*Request `json:"links,omitempty"`
}

// Export is one exporter; ID names its stream.
type Export struct {
	Type  string            `json:"type"`
	Attrs map[string]string `json:"attrs,omitempty"`
	ID    string            `json:"id,omitempty"`
}

// Cache is a place that the cache comes from or goes to.
type Cache struct {
	Type  string            `json:"type"`
	Attrs map[string]string `json:"attrs,omitempty"`
}

// Response is what the exporters and subrequests say.
type Response struct {
	Exporter map[string]string `json:"exporter,omitempty"`
}

// The questions of the engine.
const (
	AskContext     = "context"     // Name, Options ⇒ Tree as answer, then a descriptor or the exchange drawn at Entry
	AskSecret      = "secret"      // Name ⇒ data
	AskSSH         = "ssh"         // Name ⇔ data: one connection to the agent
	AskCredentials = "credentials" // Name (host) ⇒ Login
	AskFile        = "file"        // Name (exporter), Meta; data ⇒ end once it is kept
	AskTree        = "tree"        // Name (exporter); data, a tar ⇒ end once it is kept
	AskBlob        = "blob"        // Store, Name (digest) ⇒ Size, data
	AskPutBlob     = "put-blob"    // Store, Name (digest), Size; data ⇒ end
	AskRef         = "ref"         // Store, Name ⇒ descriptor as JSON
	AskSetRef      = "set-ref"     // Store, Name, Descriptor ⇒ end
	AskShell       = "shell"       // Step ⇒ Terminal or end; then data both ways, Terminal (client, resized) and at last Exit (door)
)

// Ask is a question; which fields count is said beside the questions.
type Ask struct {
	What       string            `json:"ask"`
	Name       string            `json:"name,omitempty"`
	Options    *ContextOptions   `json:"options,omitempty"`
	Meta       map[string]string `json:"meta,omitempty"`
	Store      string            `json:"store,omitempty"`
	Size       int64             `json:"size,omitempty"`
	Descriptor json.RawMessage   `json:"descriptor,omitempty"`
	Step       *Step             `json:"step,omitempty"`
}

// ContextOptions tell what is wanted of a directory; more may come.
type ContextOptions struct {
	Include            []string `json:"include,omitempty"`
	Exclude            []string `json:"exclude,omitempty"`
	Follow             []string `json:"follow,omitempty"`
	MetadataOnly       bool     `json:"metadataOnly,omitempty"`
	MetadataExceptions []string `json:"metadataExceptions,omitempty"`
	// Descriptor: one is wanted. The door asks again without when it was lost on the way.
	Descriptor bool `json:"descriptor,omitempty"`
}

// Tree answers AskContext: Key names the directory over builds. With Descriptor, one follows; without, the list of its files.
type Tree struct {
	Key        string `json:"key,omitempty"`
	Descriptor bool   `json:"descriptor,omitempty"`
}

// Login answers AskCredentials. An empty user with a secret is an identity token.
type Login struct {
	User   string `json:"user,omitempty"`
	Secret string `json:"secret,omitempty"`
}

// Size answers AskBlob.
type Size struct {
	Size int64 `json:"size"`
}

// Step is the failed step that a shell is offered in.
type Step struct {
	Name     string `json:"name"`
	Error    string `json:"error"`
	ExitCode int    `json:"exitCode"`
	// Source is where it stands.
	Sources []Source `json:"sources,omitempty"`
}

// Terminal starts the shell, or tells a new size.
type Terminal struct {
	Args    []string `json:"args,omitempty"`
	TTY     bool     `json:"tty,omitempty"`
	Columns uint16   `json:"columns,omitempty"`
	Rows    uint16   `json:"rows,omitempty"`
}

// Exit ends the shell.
type Exit struct {
	Code int `json:"code"`
}

// Source is a text and the lines of it that are meant.
type Source struct {
	Filename string  `json:"filename,omitempty"`
	Language string  `json:"language,omitempty"`
	Data     []byte  `json:"data,omitempty"`
	Ranges   []Range `json:"ranges,omitempty"`
}

// Range is a part of a text; lines count from 1.
type Range struct {
	Start Position `json:"start"`
	End   Position `json:"end"`
}

// Position is a place in a text.
type Position struct {
	Line      int `json:"line,omitempty"`
	Character int `json:"character,omitempty"`
}

// Error travels with its kind. It is the failure of a build (then with the sources), or of one question.
type Error struct {
	Kind    string   `json:"kind,omitempty"`
	Message string   `json:"message"`
	Sources []Source `json:"sources,omitempty"`
	// ExitCode is that of the step's process, when one failed.
	ExitCode int  `json:"exitCode,omitempty"`
	Canceled bool `json:"canceled,omitempty"`
}

func (e *Error) Error() string { return e.Message }

// Unwrap gives the kind.
func (e *Error) Unwrap() error {
	for _, k := range kinds() {
		if k.name == e.Kind {
			return k.kind
		}
	}
	return nil
}

type kind struct {
	name string
	kind error
}

func kinds() []kind {
	return []kind{{"invalid", errs.Invalid}, {"unauthorized", errs.Unauthorized}, {"forbidden", errs.Forbidden}, {"not-found", errs.NotFound}, {"conflict", errs.Conflict},
		{"not-implemented", errs.NotImplemented}, {"unavailable", errs.Unavailable}}
}

// ErrorOf makes err fit to travel.
func ErrorOf(err error) *Error {
	var e *Error
	if errors.As(err, &e) && e.Message == err.Error() {
		return e
	}
	e = &Error{Message: err.Error()}
	for _, k := range kinds() {
		if errors.Is(err, k.kind) {
			e.Kind = k.name
			break
		}
	}
	return e
}

// Usage is a line of `du`.
type Usage struct {
	ID          string     `json:"id"`
	Parents     []string   `json:"parents,omitempty"`
	Kind        string     `json:"kind,omitempty"`
	Description string     `json:"description,omitempty"`
	Size        int64      `json:"size"`
	InUse       bool       `json:"inUse,omitempty"`
	Shared      bool       `json:"shared,omitempty"`
	Mutable     bool       `json:"mutable,omitempty"`
	Created     time.Time  `json:"created"`
	LastUsed    *time.Time `json:"lastUsed,omitempty"`
	UsageCount  int        `json:"usageCount,omitempty"`
}

// Prune asks for a prune; see builds.PruneOptions.
type Prune struct {
	All          bool                       `json:"all,omitempty"`
	Filters      map[string]map[string]bool `json:"filters,omitempty"`
	KeepDuration time.Duration              `json:"keepDuration,omitempty"`
	Reserved     int64                      `json:"reserved,omitempty"`
	MaxUsed      int64                      `json:"maxUsed,omitempty"`
	MinFree      int64                      `json:"minFree,omitempty"`
}

// Pruned is one line of the answer to a prune: a record that went, or the sum at the end, or what went wrong.
type Pruned struct {
	Record *Usage `json:"record,omitempty"`
	Done   bool   `json:"done,omitempty"`
	Space  int64  `json:"space,omitempty"`
	Error  *Error `json:"error,omitempty"`
}

// Build is a line of history; Error alone says that the listing broke.
type Build struct {
	Ref       string            `json:"ref,omitempty"`
	Frontend  string            `json:"frontend,omitempty"`
	Attrs     map[string]string `json:"attrs,omitempty"`
	Exports   []Export          `json:"exports,omitempty"`
	Response  map[string]string `json:"response,omitempty"`
	Created   time.Time         `json:"created"`
	Completed time.Time         `json:"completed"`
	Error     string            `json:"error,omitempty"`
	Steps     int               `json:"steps,omitempty"`
	Cached    int               `json:"cached,omitempty"`
	Warnings  int               `json:"warnings,omitempty"`
}

// Bake asks for a plan; see builds.BakeRequest.
type Bake struct {
	Files     []BakeFile        `json:"files,omitempty"`
	Targets   []string          `json:"targets,omitempty"`
	Overrides []string          `json:"overrides,omitempty"`
	Env       map[string]string `json:"env,omitempty"`
}

// BakeFile is one file of it. Extra ones are only what others name.
type BakeFile struct {
	Name  string `json:"name"`
	Data  []byte `json:"data"`
	Extra bool   `json:"extra,omitempty"`
}

// BakeAnswer is the plan, or the files that it takes besides: they are named in those that were sent (extends, include).
type BakeAnswer struct {
	Plan    json.RawMessage `json:"plan,omitempty"`
	Missing []BakeMissing   `json:"missing,omitempty"`
}

// BakeMissing is one of these files. One that is optional (the .env of an included folder) is sent without content when it is not there.
type BakeMissing struct {
	Name     string `json:"name"`
	Optional bool   `json:"optional,omitempty"`
}

// Fetch asks for files at an address (POST FetchPath); without names, the address is the file. The answer is a list of BakeFile.
type Fetch struct {
	Address string   `json:"address"`
	Names   []string `json:"names,omitempty"`
}

// About is what the engine builds with and for (GET AboutPath).
type About struct {
	Version   string   `json:"version"`
	BuildKit  string   `json:"buildkit"` // whose Dockerfile language and wire it speaks
	Platforms []string `json:"platforms"`
}
