package export

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	commontypes "github.com/moby/buildkit/exporter/exptypes"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/reference"
)

// kind is a type of exporter.
type kind string

const (
	kindNone   kind = "cacheonly"
	kindImage  kind = "image"
	kindOCI    kind = "oci"
	kindDocker kind = "docker"
	kindTar    kind = "tar"
	kindLocal  kind = "local"
)

// kinds are the types by all their names. "moby" is what buildx calls the store of a docker engine.
var kinds = map[string]kind{
	"cacheonly": kindNone, "image": kindImage, "moby": kindImage, "registry": kindImage, "oci": kindOCI, "docker": kindDocker, "tar": kindTar, "local": kindLocal,
}

// options are the attributes of an exporter, read.
type options struct {
	kind  kind
	names []reference.Ref
	// nameOfResult: the frontend knows the name ("*").
	nameOfResult bool

	push, byDigest, insecure bool
	store                    bool
	dangling                 *reference.Ref // what an image without a name is called, with its digest
	danglingOnly, canonical  bool
	oci                      *bool // nil: the default
	artifact                 *bool
	inlineAttests            bool

	compression string // "", "gzip", "zstd", "uncompressed"
	level       *int
	force       bool
	rewrite     bool
	epoch       *time.Time
	epochNone   bool // given as empty: that of the result does not count
	annotations []annotation
	version     int // compatibility-version

	tar           bool
	attestPrefix  string
	platformSplit *bool
}

// annotation is one "annotation….key=value".
type annotation struct {
	exptypes.AnnotationKey
	value string
}

// attr reads one attribute. kinds are the types that have it.
type attr struct {
	kinds []kind
	read  func(o *options, value string) error
}

func boolean(field func(o *options) *bool) func(*options, string) error {
	return func(o *options, value string) (err error) {
		*field(o), err = truth(value)
		return err
	}
}

func optional(field func(o *options) **bool) func(*options, string) error {
	return func(o *options, value string) error {
		b, err := truth(value)
		*field(o) = &b
		return err
	}
}

// truth reads a boolean; an attribute without a value is set.
func truth(value string) (bool, error) {
	if value == "" {
		return true, nil
	}
	b, err := strconv.ParseBool(value)
	if err != nil {
		return false, errs.New(errs.Invalid, "%q is neither true nor false", value)
	}
	return b, nil
}

func ignored(*options, string) error { return nil }

var (
	images   = []kind{kindImage}
	archives = []kind{kindOCI, kindDocker}
	packed   = []kind{kindImage, kindOCI, kindDocker}
	trees    = []kind{kindTar, kindLocal}
	anywhere = []kind{kindImage, kindOCI, kindDocker, kindTar, kindLocal, kindNone}
)

var attrs = map[string]attr{
	"name":                    {packed, readNames},
	"push":                    {images, boolean(func(o *options) *bool { return &o.push })},
	"push-by-digest":          {images, boolean(func(o *options) *bool { return &o.byDigest })},
	"registry.insecure":       {images, boolean(func(o *options) *bool { return &o.insecure })},
	"store":                   {images, boolean(func(o *options) *bool { return &o.store })},
	"unpack":                  {images, func(_ *options, v string) error { _, err := truth(v); return err }}, // layers are never anything else
	"dangling-name-prefix":    {packed, readDangling},
	"danging-name-empty-only": {packed, boolean(func(o *options) *bool { return &o.danglingOnly })}, // BuildKit's spelling
	"name-canonical":          {packed, boolean(func(o *options) *bool { return &o.canonical })},
	"oci-mediatypes":          {packed, optional(func(o *options) **bool { return &o.oci })},
	"oci-artifact":            {packed, optional(func(o *options) **bool { return &o.artifact })},
	"attestation-inline":      {packed, boolean(func(o *options) *bool { return &o.inlineAttests })},
	"prefer-nondist-layers":   {packed, func(_ *options, v string) error { _, err := truth(v); return err }}, // there are none in the store
	"compression":             {packed, readCompression},
	"compression-level":       {packed, readLevel},
	"force-compression":       {packed, boolean(func(o *options) *bool { return &o.force })},
	"rewrite-timestamp":       {packed, boolean(func(o *options) *bool { return &o.rewrite })},
	"source-date-epoch":       {anywhere, readEpoch},
	"compatibility-version":   {packed, readVersion},
	"buildinfo":               {packed, readBuildinfo},
	"buildinfo-attrs":         {packed, readBuildinfo},
	"tar":                     {archives, boolean(func(o *options) *bool { return &o.tar })},
	"dest":                    {append(slices.Clone(archives), trees...), ignored}, // where the client puts it
	"attestation-prefix":      {trees, func(o *options, v string) error { o.attestPrefix = v; return nil }},
	"platform-split":          {trees, optional(func(o *options) **bool { return &o.platformSplit })},
	"mode":                    {[]kind{kindLocal}, readMode},
}

// parse reads a spec.
func parse(spec Spec) (*options, error) {
	k, ok := kinds[spec.Type]
	if !ok {
		return nil, errs.New(errs.Invalid, "exporter %q could not be found: choose image, registry, oci, docker, tar, local or cacheonly", spec.Type)
	}
	o := &options{kind: k, store: true, tar: true, push: spec.Type == "registry"}
	for name, value := range spec.Attrs {
		if err := o.read(name, value); err != nil {
			return nil, errs.New(errs.Invalid, "exporter %s: attribute %s: %w", spec.Type, name, err)
		}
	}
	slices.SortFunc(o.annotations, func(a, b annotation) int { return strings.Compare(a.String(), b.String()) })
	if err := o.check(); err != nil {
		return nil, errs.New(errs.Invalid, "exporter %s: %w", spec.Type, err)
	}
	return o, nil
}

func (o *options) read(name, value string) error {
	if key, ok, err := exptypes.ParseAnnotationKey(name); ok {
		if err == nil && !slices.Contains(packed, o.kind) {
			err = errs.New(errs.Invalid, "only images have annotations")
		}
		o.annotations = append(o.annotations, annotation{key, value})
		return err
	}
	a, ok := attrs[name]
	switch {
	case !ok:
		return errs.New(errs.Invalid, "not known")
	case !slices.Contains(a.kinds, o.kind):
		return errs.New(errs.Invalid, "not known for this type")
	}
	return a.read(o, value)
}

// check finds what does not go together.
func (o *options) check() error {
	switch {
	case o.push && len(o.names) == 0 && !o.nameOfResult:
		return errs.New(errs.Invalid, "name is required for push")
	case o.byDigest && !o.push:
		return errs.New(errs.Invalid, "push-by-digest needs push=true")
	case o.byDigest && slices.ContainsFunc(o.names, func(r reference.Ref) bool { return r.Tag != "" }):
		return errs.New(errs.Invalid, "can't push tagged ref %s by digest", o.tagged())
	case !o.store && !o.push:
		return errs.New(errs.Invalid, "store=false without push=true leaves nothing")
	case o.oci != nil && !*o.oci && o.compression == "zstd":
		return errs.New(errs.Invalid, "compression=zstd conflicts with oci-mediatypes=false")
	case o.oci != nil && !*o.oci && o.artifact != nil && *o.artifact:
		return errs.New(errs.Invalid, "oci-artifact=true conflicts with oci-mediatypes=false")
	case o.level != nil && o.compression == "uncompressed":
		return errs.New(errs.Invalid, "compression-level makes no sense with compression=uncompressed")
	case o.level != nil && o.compression != "zstd" && *o.level > 9:
		return errs.New(errs.Invalid, "compression-level %d: gzip has 0 to 9", *o.level)
	}
	return nil
}

func (o *options) tagged() string {
	for _, r := range o.names {
		if r.Tag != "" {
			return r.Familiar()
		}
	}
	return ""
}

// ociTypes tells whether documents carry OCI's media types; attested is that there are attestations, which need them.
func (o *options) ociTypes(attested bool) bool {
	switch {
	case o.oci != nil && (*o.oci || !attested):
		return *o.oci
	case attested, o.compression == "zstd":
		return true
	case o.kind == kindDocker:
		return false
	}
	return o.version != 20
}

func readNames(o *options, value string) error {
	for name := range strings.SplitSeq(value, ",") {
		if name = strings.TrimSpace(name); name == "" {
			continue
		}
		if name == "*" {
			o.nameOfResult = true
			continue
		}
		r, err := reference.Parse(name)
		if err != nil {
			return err
		}
		if r.Digest != "" {
			return errs.New(errs.Invalid, "%s: a name for what is built cannot have a digest", name)
		}
		if !slices.Contains(o.names, r) {
			o.names = append(o.names, r)
		}
	}
	return nil
}

func readDangling(o *options, value string) error {
	r, err := reference.Parse(value)
	if err != nil {
		return err
	}
	if r.Tag != "" || r.Digest != "" {
		return errs.New(errs.Invalid, "%s: a digest is going to follow it", value)
	}
	o.dangling = &r
	return nil
}

func readCompression(o *options, value string) error {
	switch value {
	case "gzip", "zstd", "uncompressed":
		o.compression = value
		return nil
	case "estargz":
		return errs.New(errs.NotImplemented, "estargz is not made here: choose gzip, zstd or uncompressed")
	}
	return errs.New(errs.Invalid, "%q is not known: choose gzip, zstd or uncompressed", value)
}

func readLevel(o *options, value string) error {
	n, err := strconv.Atoi(value)
	if err != nil || n < 0 || n > 22 {
		return errs.New(errs.Invalid, "%q is not a number from 0 to 22", value)
	}
	o.level = &n
	return nil
}

func readVersion(o *options, value string) error {
	n, err := strconv.Atoi(value)
	if err != nil || n != 20 && n != 30 {
		return errs.New(errs.NotImplemented, "%q: choose 20 or 30", value)
	}
	o.version = n
	return nil
}

func readBuildinfo(_ *options, value string) error {
	if on, err := truth(value); err != nil || on {
		return errs.New(errs.NotImplemented, "build information in configs has given way to provenance attestations")
	}
	return nil
}

func readMode(_ *options, value string) error {
	if value != "copy" && value != "delete" { // carried out by the client
		return errs.New(errs.Invalid, "%q: choose copy or delete", value)
	}
	return nil
}

func readEpoch(o *options, value string) (err error) {
	o.epoch, err = seconds(value)
	o.epochNone = o.epoch == nil
	return err
}

func seconds(value string) (*time.Time, error) {
	if value == "" {
		return nil, nil
	}
	n, err := strconv.ParseInt(value, 10, 64)
	if err != nil {
		return nil, errs.New(errs.Invalid, "SOURCE_DATE_EPOCH %q is not a number of seconds", value)
	}
	tm := time.Unix(n, 0).UTC()
	return &tm, nil
}

// epochOf is the SOURCE_DATE_EPOCH for a platform: the exporter's own, else the result's.
func (o *options) epochOf(meta map[string][]byte, p *exptypes.Platform) (*time.Time, error) {
	if o.epoch != nil || o.epochNone {
		return o.epoch, nil
	}
	return seconds(string(exptypes.ParseKey(meta, commontypes.ExporterEpochKey, p)))
}
