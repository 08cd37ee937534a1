package source

import (
	"encoding/json"
	"net/url"
	"path"
	"strings"

	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/gitutil"

	"corten.dev/corten/internal/errs"
)

// gitID is what a git source asks for.
type gitID struct {
	remote   *gitutil.GitURL
	ref      string // branch, tag, refs/…, commit; empty is what HEAD is there
	subdir   string // without slash in front, "" is all
	checksum string // of the commit or tag, or the beginning of it
	byCommit bool   // the checksum is the commit: the remote is not asked what ref is

	keepGitDir, skipSubmodules, advice bool
	mtimeOfCommit                      bool

	tokenSecret, headerSecret string
	sshSocket, knownHosts     string
}

// parseGit reads "git://host/path#ref:subdir", where the attribute git.fullurl tells how the host is reached.
func parseGit(op *pb.SourceOp) (id gitID, err error) {
	_, name, err := splitIdentifier(op.Identifier)
	if err != nil {
		return id, err
	}
	plain, err := parseRemote(name)
	if err != nil {
		return id, err
	}
	if id.remote = plain; op.Attrs[pb.AttrFullRemoteURL] != "" {
		if id.remote, err = parseRemote(op.Attrs[pb.AttrFullRemoteURL]); err != nil {
			return id, err
		}
		// Policies look at the identifier: it must be the truth.
		if !strings.EqualFold(plain.Host, id.remote.Host) || repositoryPath(plain) != repositoryPath(id.remote) {
			return id, errs.New(errs.Invalid, "source git://%s: %s is another repository, %s", bareName(name), pb.AttrFullRemoteURL, id.name())
		}
	}
	_, fragment, _ := strings.Cut(name, "#")
	id.ref, id.subdir, _ = strings.Cut(fragment, ":")
	id.subdir = strings.TrimPrefix(path.Join("/", id.subdir), "/")
	if err := id.check(); err != nil {
		return id, err
	}
	for k, v := range op.Attrs {
		if err := id.attr(k, v); err != nil {
			return id, errs.New(errs.Invalid, "source git://%s: attribute %s: %w", bareName(name), k, err)
		}
	}
	if id.byCommit && id.checksum == "" {
		return id, errs.New(errs.Invalid, "source git://%s: %s needs %s", bareName(name), pb.AttrGitFetchByCommit, pb.AttrGitChecksum)
	}
	return id, nil
}

func parseRemote(address string) (*gitutil.GitURL, error) {
	if !gitutil.IsGitTransport(address) {
		address = "https://" + address
	}
	u, err := gitutil.ParseURL(address)
	if err != nil || u.Host == "" {
		return nil, errs.New(errs.Invalid, "source git://%s: not a valid address of a git repository", bareName(address))
	}
	return u, nil
}

func repositoryPath(u *gitutil.GitURL) string {
	return strings.TrimSuffix(path.Join("/", u.Path), ".git")
}

// bareName is an identifier without user and password.
func bareName(name string) string { return name[strings.LastIndexByte(name, '@')+1:] }

// check refuses what git would take for something else.
func (id gitID) check() error {
	switch id.remote.Scheme {
	case gitutil.HTTPProtocol, gitutil.HTTPSProtocol, gitutil.SSHProtocol, gitutil.GitProtocol:
	default:
		return errs.New(errs.Invalid, "git repository %s: the scheme %s is not supported", id.name(), id.remote.Scheme)
	}
	for _, part := range []string{id.remote.Host, id.remote.Remote, id.remote.Path, id.ref} {
		if strings.HasPrefix(part, "-") || strings.ContainsFunc(part, func(r rune) bool { return r < 0x20 || r == 0x7f }) {
			return errs.New(errs.Invalid, "git repository %s: %q is no part of an address", id.name(), part)
		}
	}
	if strings.ContainsAny(id.ref, " ~^:?*[\\") || strings.Contains(id.ref, "..") || strings.Contains(id.ref, "@{") || strings.HasSuffix(id.ref, "/") || strings.HasSuffix(id.ref, ".lock") {
		return errs.New(errs.Invalid, "git repository %s: %q is no valid name of a branch, tag or commit", id.name(), id.ref)
	}
	return nil
}

func (id *gitID) attr(k, v string) error {
	switch k {
	case pb.AttrFullRemoteURL:
	case pb.AttrKeepGitDir:
		id.keepGitDir = v == "true"
	case pb.AttrAuthTokenSecret:
		id.tokenSecret = v
	case pb.AttrAuthHeaderSecret:
		id.headerSecret = v
	case pb.AttrKnownSSHHosts:
		id.knownHosts = v
	case pb.AttrMountSSHSock:
		id.sshSocket = v
	case pb.AttrGitChecksum:
		if id.checksum = v; !isHexString(v) || len(v) < 7 || len(v) > 64 {
			return errs.New(errs.Invalid, "%q is no commit: expected hex digits", v)
		}
	case pb.AttrGitSkipSubmodules:
		id.skipSubmodules = v == "true"
	case pb.AttrGitAdvice:
		id.advice = v == "true"
	case pb.AttrGitFetchByCommit:
		id.byCommit = v == "true"
	case pb.AttrGitMTime:
		if v != "" && v != "checkout" && v != "commit" {
			return errs.New(errs.Invalid, "%q is none of checkout, commit", v)
		}
		id.mtimeOfCommit = v == "commit"
	case pb.AttrGitSignatureVerifyPubKey, pb.AttrGitSignatureVerifyRejectExpired, pb.AttrGitSignatureVerifyRequireSignedTag, pb.AttrGitSignatureVerifyIgnoreSignedTag:
		return errs.New(errs.NotImplemented, "signatures of commits are not verified here: use a checksum")
	case pb.AttrGitBundle, pb.AttrGitCheckoutBundle, pb.AttrOCILayoutSessionID, pb.AttrOCILayoutStoreID:
		return errs.New(errs.NotImplemented, "git bundles are not supported")
	default:
		return errs.New(errs.NotImplemented, "unknown attribute")
	}
	return nil
}

// name is how people and records see the repository: without user and password.
func (id gitID) name() string {
	return id.remote.Scheme + "://" + id.remote.Host + path.Join("/", id.remote.Path)
}

// full names what is asked for, for people.
func (id gitID) full() string {
	name := id.name()
	if id.ref != "" || id.subdir != "" {
		name += "#" + id.ref
	}
	if id.subdir != "" {
		name += ":" + id.subdir
	}
	return name
}

// address is what git is given, without a password: that goes by another way.
func (id gitID) address() string {
	if id.remote.Scheme == gitutil.SSHProtocol || id.remote.User == nil {
		return id.remote.Remote
	}
	u, err := url.Parse(id.remote.Remote)
	if err != nil {
		return id.remote.Remote
	}
	u.User = nil
	return u.String()
}

// checkout names what a checkout of the commit gives.
func (id gitID) checkout(commit string) string {
	ref := ""
	if id.keepGitDir {
		ref = id.ref // it is written into .git
	}
	raw, _ := json.Marshal([]any{id.address(), ref, id.subdir, id.keepGitDir, id.skipSubmodules, id.mtimeOfCommit, commit}) // strings and flags only
	return string(raw)
}

func isHexString(s string) bool {
	return s != "" && strings.Trim(s, "0123456789abcdef") == ""
}

// isCommit tells whether a ref is a whole commit's name.
func isCommit(ref string) bool { return (len(ref) == 40 || len(ref) == 64) && isHexString(ref) }
