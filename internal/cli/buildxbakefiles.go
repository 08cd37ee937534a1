package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"corten.dev/corten/internal/buildwire"
	"corten.dev/corten/internal/cli/buildprogress"
	"corten.dev/corten/internal/cli/engineapi"
)

// localPrefix says that a file or context is of this host, when all else is at an address.
const localPrefix = "cwd://"

// local gives the path behind it.
func local(name string) (string, bool) {
	rest, ok := strings.CutPrefix(name, localPrefix)
	if ok && rest == "" {
		rest = "."
	}
	return rest, ok
}

// readOne reads a file of this host.
func (o *bakeFlags) readOne(a *app, name string) (buildwire.BakeFile, error) {
	read := func(r io.Reader) (buildwire.BakeFile, error) {
		data, err := io.ReadAll(io.LimitReader(r, maxBakeFile+1))
		if err == nil && len(data) > maxBakeFile {
			err = invalid("%s is larger than %d bytes", name, maxBakeFile)
		}
		return buildwire.BakeFile{Name: name, Data: data}, err
	}
	if name == "-" {
		name = "stdin"
		return read(a.In)
	}
	if at, ok := local(name); ok {
		name = at
	}
	f, err := os.Open(name)
	if err != nil {
		return buildwire.BakeFile{}, err
	}
	one, err := read(f)
	return one, errors.Join(err, f.Close())
}

// read reads the files.
func (o *bakeFlags) read(ctx context.Context, a *app) (files []buildwire.BakeFile, err error) {
	if o.remote != "" {
		files, err = o.readRemote(ctx, a)
	} else {
		names := o.files
		if len(names) == 0 {
			names = defaultBakeFiles()
		}
		for _, name := range names {
			f, err := o.readOne(a, name)
			if errors.Is(err, os.ErrNotExist) && len(o.files) == 0 {
				continue
			}
			if err != nil {
				return nil, err
			}
			files = append(files, f)
		}
	}
	if err == nil && len(files) == 0 {
		err = &exitError{code: 1, text: "ERROR: couldn't find a bake definition"}
	}
	return files, err
}

// readRemote has the engine fetch the files, but for those that are of this host.
func (o *bakeFlags) readRemote(ctx context.Context, a *app) (files []buildwire.BakeFile, err error) {
	var names []string
	for _, name := range o.files {
		if _, ok := local(name); !ok && name != "-" {
			names = append(names, path.Clean(filepath.ToSlash(name)))
		}
	}
	wanted := names
	if len(o.files) == 0 {
		wanted = defaultBakeFiles()
	}
	var there []buildwire.BakeFile
	if len(wanted) > 0 {
		if there, err = a.fetch(ctx, o.remote, wanted); err != nil {
			return nil, err
		}
	}
	if len(o.files) == 0 || len(there) == 1 && !slices.Contains(wanted, there[0].Name) { // the address was a file itself
		return there, nil
	}
	for _, name := range o.files {
		if _, ok := local(name); ok || name == "-" {
			f, err := o.readOne(a, name)
			if err != nil {
				return nil, err
			}
			files = append(files, f)
			continue
		}
		i := slices.IndexFunc(there, func(f buildwire.BakeFile) bool { return f.Name == path.Clean(filepath.ToSlash(name)) })
		if i < 0 {
			return nil, &exitError{code: 1, text: fmt.Sprintf("ERROR: failed to read %s: no such file in %s", name, o.remote)}
		}
		files = append(files, there[i])
	}
	return files, nil
}

// fetch reads files at an address, by the engine.
func (a *app) fetch(ctx context.Context, address string, names []string) (files []buildwire.BakeFile, err error) {
	api, err := a.engine()
	if err != nil {
		return nil, err
	}
	err = api.Post(ctx, buildwire.FetchPath, nil, buildwire.Fetch{Address: address, Names: names}, &files)
	return files, err
}

// more reads files that the engine asks for because others name them. Nothing is given that no file names.
func (o *bakeFlags) more(ctx context.Context, a *app, have []buildwire.BakeFile, missing []buildwire.BakeMissing) (files []buildwire.BakeFile, err error) {
	for _, file := range missing {
		name, mark := file.Name, path.Base(file.Name)
		if mark == projectEnv && file.Optional { // of a folder that is named
			mark = path.Base(path.Dir(name))
		}
		if !slices.ContainsFunc(have, func(f buildwire.BakeFile) bool { return bytes.Contains(f.Data, []byte(mark)) }) {
			return nil, invalid("the engine asks for %s, which no file names", name)
		}
		if o.remote == "" {
			f, err := o.readOne(a, filepath.FromSlash(name))
			if err != nil && !(file.Optional && (errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.EISDIR))) {
				return nil, err
			}
			files = append(files, buildwire.BakeFile{Name: name, Data: f.Data, Extra: true})
			continue
		}
		there, err := a.fetch(ctx, o.remote, []string{name})
		if err != nil {
			return nil, err
		}
		if len(there) == 0 && !file.Optional {
			return nil, &exitError{code: 1, text: fmt.Sprintf("ERROR: failed to read %s: no such file in %s", name, o.remote)}
		}
		one := buildwire.BakeFile{Name: name, Extra: true}
		if len(there) > 0 {
			one.Data = there[0].Data
		}
		files = append(files, one)
	}
	return files, nil
}

// maxBakeRounds bounds how often files lead to others.
const maxBakeRounds = 20

// plan has the engine read the files. Of the environment, only variables whose names stand in the files or overrides go along.
func (o *bakeFlags) plan(ctx context.Context, a *app, targets []string) ([]byte, error) {
	in := buildwire.Bake{Env: map[string]string{}}
	at := ""
	if len(targets) > 0 && isRemoteContext(targets[0]) {
		o.remote, targets = targets[0], targets[1:]
		if len(targets) > 0 && isRemoteContext(targets[0]) { // buildx' second address is for who asks for it: BAKE_CMD_CONTEXT
			at, targets = targets[0], targets[1:]
		}
	}
	var err error
	if in.Files, err = o.read(ctx, a); err != nil {
		return nil, err
	}
	if err := o.withProjectEnv(&in); err != nil {
		return nil, err
	}
	in.Targets = targets
	o.overrides(&in)
	api, err := a.engine()
	if err != nil {
		return nil, err
	}
	for range maxBakeRounds {
		if err := o.environ(&in); err != nil {
			return nil, err
		}
		if at != "" {
			in.Env["BAKE_CMD_CONTEXT"] = at
		}
		var answer buildwire.BakeAnswer
		if err := api.Post(ctx, buildwire.BakePath, nil, in, &answer); err != nil {
			return nil, a.bakeRefused(err, in.Files)
		}
		if len(answer.Missing) == 0 {
			return answer.Plan, nil
		}
		extra, err := o.more(ctx, a, in.Files, answer.Missing)
		if err != nil {
			return nil, err
		}
		in.Files = append(in.Files, extra...)
	}
	return nil, invalid("the files lead to others more than %d deep", maxBakeRounds)
}

// projectEnv is the file of variables that compose files have without naming it.
const projectEnv = ".env"

// withProjectEnv gives the .env of this folder to compose files, which take variables from it.
func (o *bakeFlags) withProjectEnv(in *buildwire.Bake) error {
	const name, most = projectEnv, 1 << 20
	compose := func(f buildwire.BakeFile) bool { return path.Ext(f.Name) == ".yml" || path.Ext(f.Name) == ".yaml" }
	if o.remote != "" || !slices.ContainsFunc(in.Files, compose) {
		return nil
	}
	st, err := os.Stat(name)
	if errors.Is(err, os.ErrNotExist) || err == nil && st.IsDir() {
		return nil
	}
	if err == nil && (!st.Mode().IsRegular() || st.Size() > most) {
		return invalid("%s is no file of variables", name)
	}
	data, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	in.Files = append(in.Files, buildwire.BakeFile{Name: name, Data: data, Extra: true})
	return nil
}

// bakeRefused is the error of files that cannot be read, with the lines that it speaks of.
func (a *app) bakeRefused(err error, files []buildwire.BakeFile) error {
	var refused *engineapi.Error
	if !errors.As(err, &refused) {
		return err
	}
	for _, f := range files { // "docker-bake.hcl:4,9-16: …", behind "target default: " at times
		_, rest, ok := strings.Cut(": "+refused.Message, ": "+f.Name+":")
		number, _, _ := strings.Cut(rest, ",")
		line, err := strconv.Atoi(number)
		if !ok || err != nil {
			continue
		}
		src := buildprogress.Source{Filename: f.Name, Data: f.Data}
		if err := src.Lines(a.Err, []buildprogress.Range{{Start: buildprogress.Position{Line: line}, End: buildprogress.Position{Line: line}}}); err != nil {
			return err
		}
		break
	}
	return &exitError{code: 1, text: "ERROR: " + refused.Message}
}

// overrides are --set, and the flags that are short for it.
func (o *bakeFlags) overrides(in *buildwire.Bake) {
	in.Overrides = append(in.Overrides, o.sets...)
	add := func(on bool, text string) {
		if on {
			in.Overrides = append(in.Overrides, text)
		}
	}
	add(o.push, "*.push=true")
	add(o.load, "*.load=true")
	add(o.noCache, "*.no-cache=true")
	add(o.pull, "*.pull=true")
	for kind, text := range map[string]string{"provenance": o.provenance, "sbom": o.sbom} {
		on, isBool := boolOf(text)
		add(isBool, fmt.Sprintf("*.attest=type=%s,disabled=%v", kind, !on))
		add(text != "" && !isBool, fmt.Sprintf("*.attest=type=%s,%s", kind, text))
	}
}

// environ adds the variables that are mentioned, and --var.
func (o *bakeFlags) environ(in *buildwire.Bake) error {
	mentioned := func(name string) bool {
		for _, f := range in.Files {
			if bytes.Contains(f.Data, []byte(name)) {
				return true
			}
		}
		return slices.ContainsFunc(in.Overrides, func(s string) bool { return strings.HasSuffix(s, "."+name) })
	}
	for _, pair := range os.Environ() {
		name, value, _ := strings.Cut(pair, "=")
		if base := strings.TrimSuffix(name, "_JSON"); name != "" && (mentioned(name) || mentioned(base)) {
			in.Env[name] = value
		}
	}
	for _, pair := range o.vars {
		name, value, ok := strings.Cut(pair, "=")
		if !ok {
			return invalid("ERROR: invalid --var %q: use name=value", pair)
		}
		in.Env[name] = value
	}
	return nil
}

// place is where a context of a file is: a folder of this host, or, when the file came from an address, of that.
func (o *bakeFlags) place(dir string) (string, error) {
	if at, ok := local(dir); ok {
		return at, nil
	}
	if o.remote == "" || isRemoteContext(dir) || strings.HasPrefix(dir, "docker-image://") || strings.HasPrefix(dir, "oci-layout://") {
		return dir, nil
	}
	sub := path.Clean(filepath.ToSlash(dir))
	if sub == "." {
		return o.remote, nil
	}
	if path.IsAbs(sub) || sub == ".." || strings.HasPrefix(sub, "../") {
		return "", &exitError{code: 1, text: fmt.Sprintf("ERROR: context %s is not in %s; a folder of this host is named %s", dir, o.remote, localPrefix+dir)}
	}
	repo, frag, _ := strings.Cut(o.remote, "#")
	if isHTTP(repo) && !strings.HasSuffix(strings.SplitN(repo, "?", 2)[0], ".git") {
		return "", &exitError{code: 1, text: fmt.Sprintf("ERROR: context %s: a folder in an archive at an address cannot be a context; use a git repository", dir)}
	}
	ref, within, _ := strings.Cut(frag, ":")
	return repo + "#" + ref + ":" + path.Join(within, sub), nil
}
