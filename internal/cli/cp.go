package cli

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"
	"github.com/spf13/pflag"

	"corten.dev/corten/internal/cli/copied"
	"corten.dev/corten/internal/cli/engineapi"
)

type cpOptions struct{ archive, followLink, quiet bool }

func newCp() *verb {
	var o cpOptions
	return &verb{
		use: "[OPTIONS] CONTAINER:SRC_PATH DEST_PATH|-\n\tcorten cp [OPTIONS] SRC_PATH|- CONTAINER:DEST_PATH", min: 2, max: 2, names: containers,
		short: "Copy files between a container and this machine",
		long: "Copies a file or a folder, as `cp -a` does. A folder that exists as destination gets the source inside; with SRC_PATH/. it\n" +
			"gets the source's content. A - stands for a tar archive on standard input or output.",
		example: "corten cp web:/etc/nginx/nginx.conf .\ncorten cp ./site/. web:/srv\ntar -c . | corten cp - web:/srv",
		flags: func(f *pflag.FlagSet) {
			f.BoolVarP(&o.archive, "archive", "a", false, "keep owner and group")
			f.BoolVarP(&o.followLink, "follow-link", "L", false, "follow a symbolic link as source")
			f.BoolVarP(&o.quiet, "quiet", "q", false, "print nothing when it worked")
		},
		run: func(ctx context.Context, a *app, args []string) error {
			srcCtr, src := splitCp(args[0])
			dstCtr, dst := splitCp(args[1])
			switch {
			case srcCtr != "" && dstCtr != "":
				return invalid("copying between containers is not supported")
			case srcCtr == "" && dstCtr == "":
				return invalid("must specify at least one container source")
			case src == "" || dst == "":
				return invalid("%s can not be empty", map[bool]string{true: "source", false: "destination"}[src == ""])
			}
			api, err := a.engine()
			if err != nil {
				return err
			}
			if srcCtr != "" && dst == "-" {
				return o.out(ctx, a, api, srcCtr, src, dst)
			}
			if srcCtr != "" {
				return whole(ctx, func(ctx context.Context) error { return o.out(ctx, a, api, srcCtr, src, dst) })
			}
			return o.in(ctx, a, api, src, dstCtr, dst)
		},
	}
}

// splitCp cuts CONTAINER:PATH. A path that begins with / or . is local, whatever colons are in it.
func splitCp(arg string) (ctr, name string) {
	if filepath.IsAbs(arg) || filepath.VolumeName(arg) != "" {
		return "", arg
	}
	ctr, name, ok := strings.Cut(arg, ":")
	if !ok || strings.HasPrefix(ctr, ".") {
		return "", arg
	}
	return ctr, name
}

// statOf reads the header with which the engine describes a path.
func statOf(header map[string]string) (container.PathStat, error) {
	var st container.PathStat
	data, err := base64.StdEncoding.DecodeString(header["x-docker-container-path-stat"])
	if err == nil {
		err = json.Unmarshal(data, &st)
	}
	if err != nil {
		return st, fmt.Errorf("read what the engine says about the path: %w", err)
	}
	return st, nil
}

func ctrStat(ctx context.Context, api *engineapi.Client, ctr, name string) (container.PathStat, error) {
	resp, err := api.Do(ctx, engineapi.Request{Method: "HEAD", Path: "/containers/" + esc(ctr) + "/archive", Query: query("path", name)})
	if err != nil {
		var apiErr *engineapi.Error
		if errors.As(err, &apiErr) { // an answer to HEAD has no text
			switch apiErr.Status {
			case 404:
				apiErr.Message = "Could not find the file " + name + " in container " + ctr
			case 400:
				apiErr.Message = "lstat " + name + ": not a directory"
			}
		}
		return container.PathStat{}, err
	}
	defer resp.Body.Close()
	return statOf(resp.Header)
}

// followCtr resolves a path that is a symbolic link in the container, one step, as docker does.
func followCtr(ctx context.Context, api *engineapi.Client, ctr, name string) string {
	st, err := ctrStat(ctx, api, ctr, name)
	if err != nil || st.Mode&os.ModeSymlink == 0 || st.LinkTarget == "" {
		return name
	}
	target := st.LinkTarget
	if !path.IsAbs(target) {
		target = path.Join(path.Dir(name), target)
	}
	return target
}

// out copies from a container.
func (o *cpOptions) out(ctx context.Context, a *app, api *engineapi.Client, ctr, src, dst string) error {
	if o.followLink {
		src = followCtr(ctx, api, ctr, src)
	}
	resp, err := api.Do(ctx, engineapi.Request{Method: "GET", Path: "/containers/" + esc(ctr) + "/archive", Query: query("path", src)})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if dst == "-" {
		return copyOut(a.Out, resp.Body)
	}
	st, err := statOf(resp.Header)
	if err != nil {
		return err
	}
	counted := &counter{r: resp.Body}
	to, err := copied.Destination(src, st.Mode.IsDir(), dst)
	if err != nil {
		return err
	}
	if err := copied.Extract(counted, to, o.archive); err != nil {
		return err
	}
	if _, live := terminalFd(a.Err); live && !o.quiet {
		fmt.Fprintf(a.Err, "Successfully copied %s to %s\n", units.HumanSizeWithPrecision(float64(counted.n), 3), dst)
	}
	return nil
}

// in copies to a container.
func (o *cpOptions) in(ctx context.Context, a *app, api *engineapi.Client, src, ctr, dst string) error {
	var source *copied.Source
	if src != "-" {
		var err error
		if source, err = copied.Open(src, o.followLink); err != nil {
			return err
		}
	}
	st, err := ctrStat(ctx, api, ctr, dst)
	exists := err == nil
	if err != nil && !isNotFound(err) {
		if strings.HasSuffix(dst, "/") || strings.HasSuffix(dst, "/.") {
			return invalid("no such directory")
		}
		return err
	}
	if exists && st.Mode&os.ModeSymlink != 0 && st.LinkTarget != "" {
		dst = followCtr(ctx, api, ctr, dst)
		if st, err = ctrStat(ctx, api, ctr, dst); err != nil {
			exists = false
		}
	}
	var content io.Reader
	target := dst
	if source == nil {
		if exists && !st.Mode.IsDir() {
			return invalid("destination \"%s:%s\" must be a directory", ctr, dst)
		}
		content = a.In
	} else {
		into, rename, err := containerTarget(source, dst, exists, exists && st.Mode.IsDir())
		if err != nil {
			return err
		}
		pr, pw := io.Pipe()
		go func() { pw.CloseWithError(source.Write(pw, rename)) }()
		defer pr.Close()
		content, target = pr, into
	}
	counted := &counter{r: content}
	q := query("path", target, "noOverwriteDirNonDir", "true")
	if o.archive {
		q.Set("copyUIDGID", "true")
	}
	if err := api.Call(ctx, engineapi.Request{Method: "PUT", Path: "/containers/" + esc(ctr) + "/archive", Query: q, Stream: counted, ContentType: tarType}, nil); err != nil {
		return err
	}
	if _, live := terminalFd(a.Err); live && !o.quiet {
		fmt.Fprintf(a.Err, "Successfully copied %s to %s:%s\n", units.HumanSizeWithPrecision(float64(counted.n), 3), ctr, dst)
	}
	return nil
}

// containerTarget chooses the folder to unpack into, and the name that the source gets there.
func containerTarget(src *copied.Source, dst string, exists, isDir bool) (into, rename string, err error) {
	slash := strings.HasSuffix(dst, "/") || strings.HasSuffix(dst, "/.")
	abs := path.Join("/", dst)
	switch {
	case exists && isDir && src.IsDir && src.Content:
		return abs, ".", nil
	case exists && isDir:
		return abs, src.Base, nil
	case exists && src.IsDir:
		return "", "", invalid("cannot copy directory")
	case exists && slash:
		return "", "", invalid("not a directory")
	case !src.IsDir && slash:
		return "", "", invalid("no such directory")
	}
	return path.Dir(abs), path.Base(abs), nil
}

// counter counts what is read.
type counter struct {
	r io.Reader
	n int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}
