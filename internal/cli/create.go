package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/moby/moby/api/types/container"

	"corten.dev/corten/internal/cli/engineapi"
	"corten.dev/corten/internal/cli/parse"
	"corten.dev/corten/internal/runwire"
)

func newCreate() *verb {
	var o ctrFlags
	v := &verb{
		use: "[OPTIONS] IMAGE [COMMAND] [ARG...]", min: 1, max: -1, stopAtArg: true, names: images,
		short:   "Make a container without starting it",
		long:    "Makes a container from an image and prints its ID. Nothing runs until it is started with `corten start`.\nAll options of `corten run` that describe the container are available.",
		example: "corten create --name web -p 8080:80 nginx\ncorten start web",
		flags:   o.register,
	}
	v.run = func(ctx context.Context, a *app, args []string) error {
		req, err := o.toRequest(v.set, args)
		if errors.As(err, new(*usageError)) {
			return err
		}
		if err != nil {
			return withHelp("create", err, 125)
		}
		api, err := a.engine()
		if err != nil {
			return err
		}
		id, err := a.create(ctx, api, &o, req)
		if err != nil {
			return err
		}
		fmt.Fprintln(a.Out, id)
		return nil
	}
	return v
}

// withHelp is docker's shape for what went wrong before or while a container started.
func withHelp(verb string, err error, code int) error {
	text := strings.TrimSpace(err.Error())
	return &exitError{code: code, text: fmt.Sprintf("corten: %s\n\nRun 'corten %s --help' for more information", text, verb)}
}

// create makes the container; a missing image is pulled when --pull allows.
func (a *app) create(ctx context.Context, api *engineapi.Client, o *ctrFlags, req *container.CreateRequest) (string, error) {
	return a.making(ctx, api, o, req, func(r engineapi.Request) (made runwire.Made, err error) {
		err = api.Call(ctx, r, &made)
		return made, err
	})
}

// making is create with a request that may do more than create; send may be called twice.
func (a *app) making(ctx context.Context, api *engineapi.Client, o *ctrFlags, req *container.CreateRequest, send func(engineapi.Request) (runwire.Made, error)) (string, error) {
	cid, err := newCIDFile(o.cidfile)
	if err != nil {
		return "", err
	}
	defer cid.close()
	if err := checkMAC(ctx, api, req); err != nil {
		return "", err
	}
	req.Config.Env = proxyEnv(req.Config.Env, a.cfg, a.ep.Host)
	if o.pull == "always" {
		if err := a.pull(ctx, api, req.Image, o); err != nil {
			return "", err
		}
	}
	body, err := engineapi.Sparse(createBody{req, &hostBody{req.HostConfig, o.mounts}})
	if err != nil {
		return "", err
	}
	r := engineapi.Request{Method: "POST", Path: "/containers/create", Query: query("name", o.name, "platform", o.platform), In: body}
	made, err := send(r)
	var apiErr *engineapi.Error
	if errors.As(err, &apiErr) && apiErr.Status == 404 && noImage(apiErr.Message) && o.pull == "missing" {
		if !o.quiet {
			fmt.Fprintf(a.Err, "Unable to find image '%s' locally\n", withTag(req.Image))
		}
		if err := a.pull(ctx, api, req.Image, o); err != nil {
			return "", err
		}
		made, err = send(r)
	}
	if err != nil {
		return "", err
	}
	for _, w := range made.Warnings {
		fmt.Fprintln(a.Err, "WARNING: "+w)
	}
	return made.ID, cid.write(made.ID)
}

// createBody is Docker's request with mounts that have fields of ours.
type createBody struct {
	*container.CreateRequest
	HostConfig *hostBody
}

type hostBody struct {
	*container.HostConfig
	Mounts []parse.Mounted `json:",omitempty"`
}

// noImage tells whether an engine has no image, or none of that platform; other things that a container needs can be missing as well.
func noImage(message string) bool {
	return strings.Contains(message, "No such image") || strings.HasPrefix(message, "image with reference ")
}

// checkMAC refuses a MAC address towards an engine that is too old to read it where we write it.
func checkMAC(ctx context.Context, api *engineapi.Client, req *container.CreateRequest) error {
	if req.NetworkingConfig == nil {
		return nil
	}
	for _, ep := range req.NetworkingConfig.EndpointsConfig {
		if ep.MacAddress == nil {
			continue
		}
		if err := api.Settle(ctx); err != nil {
			return err
		}
		if engineapi.Less(api.Version(), "1.44") {
			return invalid(`"specify mac-address per network" requires API version 1.44, but the Docker daemon API version is %s`, api.Version())
		}
	}
	return nil
}

// withTag names the tag that a reference without one stands for.
func withTag(ref string) string {
	if strings.Contains(ref, "@") || strings.LastIndex(ref, ":") > strings.LastIndex(ref, "/") {
		return ref
	}
	return ref + ":latest"
}

// splitRef cuts a reference into name and tag or digest, for the API's fromImage and tag.
func splitRef(ref string) (name, tag string) {
	if name, digest, ok := strings.Cut(ref, "@"); ok {
		return name, digest
	}
	if i := strings.LastIndex(ref, ":"); i > strings.LastIndex(ref, "/") {
		return ref[:i], ref[i+1:]
	}
	return ref, ""
}

// newName is the name that an image shall have, in its two parts. A digest names what is there already, and an empty tag is a script's variable that was not set.
func newName(ref string) (name, tag string, err error) {
	if strings.Contains(ref, "@") {
		return "", "", invalid("refusing to create a tag with a digest reference")
	}
	if strings.HasSuffix(ref, ":") {
		return "", "", invalid("%q is not a valid repository/tag: invalid reference format", ref)
	}
	name, tag = splitRef(ref)
	return name, tag, nil
}

// cidFile is --cidfile: made before the container, so that it cannot be taken, and gone if no ID was written.
type cidFile struct {
	name    string
	f       *os.File
	written bool
}

func newCIDFile(name string) (*cidFile, error) {
	if name == "" {
		return &cidFile{}, nil
	}
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o666)
	if errors.Is(err, os.ErrExist) {
		return nil, invalid("container ID file found, make sure the other container isn't running or delete %s", name)
	}
	if err != nil {
		return nil, fmt.Errorf("create container ID file: %w", err)
	}
	return &cidFile{name: name, f: f}, nil
}

func (c *cidFile) write(id string) error {
	if c.f == nil {
		return nil
	}
	if _, err := c.f.WriteString(id); err != nil {
		return fmt.Errorf("write the container ID to the file: %w", err)
	}
	c.written = true
	return nil
}

func (c *cidFile) close() {
	if c.f == nil {
		return
	}
	c.f.Close()
	if !c.written {
		os.Remove(c.name)
	}
}
