package source

import (
	"mime"
	"net/http"
	"net/url"
	"path"
	"strconv"
	"strings"

	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/errs"
)

// httpID is what an http or https source asks for.
type httpID struct {
	url      *url.URL
	checksum digest.Digest
	filename string
	perm     int64 // 0 is 0600
	uid, gid int
	secret   string      // the id of a secret that is the Authorization header
	header   http.Header // Accept, User-Agent
}

// parseHTTP reads "https://host/path".
func parseHTTP(op *pb.SourceOp) (id httpID, err error) {
	// url.Parse puts the address into its error, with a password if it has one.
	if id.url, err = url.Parse(op.Identifier); err != nil || id.url.Host == "" || id.url.Scheme != "http" && id.url.Scheme != "https" {
		return id, errs.New(errs.Invalid, "source is not a valid http or https address")
	}
	id.header = http.Header{}
	for k, v := range op.Attrs {
		var err error
		switch k {
		case pb.AttrHTTPChecksum:
			id.checksum, err = digest.Parse(v)
		case pb.AttrHTTPFilename:
			id.filename = v
			if cleanFilename(v) != v {
				err = errs.New(errs.Invalid, "not the name of a file")
			}
		case pb.AttrHTTPPerm:
			id.perm, err = strconv.ParseInt(v, 0, 32)
			if err == nil && (id.perm < 0 || id.perm > 0o7777) {
				err = errs.New(errs.Invalid, "no mode of a file")
			}
		case pb.AttrHTTPUID:
			id.uid, err = parseOwner(v)
		case pb.AttrHTTPGID:
			id.gid, err = parseOwner(v)
		case pb.AttrHTTPAuthHeaderSecret:
			id.secret = v
		case pb.AttrHTTPSignatureVerify, pb.AttrHTTPSignatureVerifyPubKey:
			return id, errs.New(errs.NotImplemented, "source %s: PGP signatures of downloads are not supported: use a checksum", id.url.Redacted())
		default:
			name, ok := strings.CutPrefix(k, pb.AttrHTTPHeaderPrefix)
			if !ok {
				err = errs.New(errs.NotImplemented, "unknown attribute")
				break
			}
			// Others would change what the request means: BuildKit takes these two as well.
			if name = http.CanonicalHeaderKey(name); name == "Accept" || name == "User-Agent" {
				id.header.Set(name, v)
			}
		}
		if err != nil {
			return id, errs.New(errs.Invalid, "source %s: attribute %s: %w", id.url.Redacted(), k, err)
		}
	}
	return id, nil
}

func parseOwner(v string) (int, error) {
	n, err := strconv.ParseUint(v, 10, 32)
	return int(n), err
}

// name is how people and records see the address: without its password.
func (id httpID) name() string { return id.url.Redacted() }

// nameOf is the file's name: what was asked for, else what the server says, else the address' last part.
func (id httpID) nameOf(header http.Header) string {
	if id.filename != "" {
		return id.filename
	}
	if _, params, err := mime.ParseMediaType(header.Get("Content-Disposition")); err == nil {
		if name := cleanFilename(params["filename"]); name != "" {
			return name
		}
	}
	if name := cleanFilename(path.Base(id.url.Path)); name != "" {
		return name
	}
	return "download"
}

// cleanFilename is the last part of what a server says; empty when that is no name.
func cleanFilename(name string) string {
	name = name[strings.LastIndexAny(name, `/\`)+1:]
	if name == "." || name == ".." || len(name) > 255 || strings.ContainsFunc(name, func(r rune) bool { return r < 0x20 || r == 0x7f }) || strings.HasPrefix(name, ".wh.") {
		return ""
	}
	return name
}
