package server

import (
	"net/http"
	"time"

	wire "github.com/moby/moby/api/types/container"
	wirenet "github.com/moby/moby/api/types/network"

	"corten.dev/corten/internal/container"
	"corten.dev/corten/internal/engine/containers"
	"corten.dev/corten/internal/engine/networks"
	"corten.dev/corten/internal/errs"
)

// Endpoints that Docker does not have. Types are those of the container endpoints; what is left out stays as it is.
//
//	POST /containers/{id}/edit      editBody ─▶ editedBody
//	POST /networks/{id}/update      networkEditBody ─▶ editedBody
//	POST /containers/{id}/upgrade?image=NAME&grace=SECONDS&dryrun=1 ─▶ editedBody, when the container has proved itself (or was put back: an error)

// editBody changes a container's settings.
type editBody struct {
	Resources     *wire.Resources     `json:",omitempty"`
	RestartPolicy *wire.RestartPolicy `json:",omitempty"`
	PortBindings  wirenet.PortMap     `json:",omitempty"` // to publish
	Unpublish     []string            `json:",omitempty"` // [hostPort:]containerPort[/protocol]
	Env           []string            `json:",omitempty"`
	UnsetEnv      []string            `json:",omitempty"`
	Labels        map[string]string   `json:",omitempty"`
	UnsetLabels   []string            `json:",omitempty"`
	Annotations   map[string]string   `json:",omitempty"` // an empty one is taken away
	Binds         []string            `json:",omitempty"`
	Mounts        []mountBody         `json:",omitempty"`
	Unmount       []string            `json:",omitempty"` // targets
	Connect       map[string]*wirenet.EndpointSettings
	Disconnect    []string          `json:",omitempty"`
	LogDriver     *string           `json:",omitempty"` // with LogOptions alone; "": the engine's default
	LogOptions    map[string]string `json:",omitempty"` // an empty one is taken away
	Undo, DryRun  bool
}

// networkEditBody changes a network.
type networkEditBody struct {
	Options      map[string]string `json:",omitempty"` // dev.corten.egress, dev.corten.rate.egress, dev.corten.rate.ingress; an empty one is taken away
	Undo, DryRun bool
}

func (s *Server) networkUpdate(w http.ResponseWriter, r *request) error {
	var body networkEditBody
	if err := readJSON(r.Request, &body); err != nil {
		return err
	}
	changes, err := s.Networks.Update(r.steady(), r.id(), networks.Change(body))
	if err != nil {
		return err
	}
	return ok(w, editedBody{Changes: orEmpty(changes), How: containers.EditLive, Warnings: []string{}})
}

// editedBody tells what was changed, or would be.
type editedBody struct {
	Changes  []string
	How      string // live, restart, next start
	Warnings []string
}

func toEdited(e containers.Edited) editedBody {
	return editedBody{Changes: orEmpty(e.Changes), How: e.How, Warnings: orEmpty(e.Warnings)}
}

func (s *Server) containerEdit(w http.ResponseWriter, r *request) error {
	var body editBody
	if err := readJSON(r.Request, &body); err != nil {
		return err
	}
	req, err := toEdit(body, r.version)
	if err != nil {
		return err
	}
	done, err := s.Containers.Edit(r.steady(), r.id(), req)
	if err != nil {
		return err
	}
	return ok(w, toEdited(done))
}

func toEdit(body editBody, version int) (containers.EditRequest, error) {
	req := containers.EditRequest{
		Unpublish: body.Unpublish, Env: body.Env, UnsetEnv: body.UnsetEnv, Labels: body.Labels, UnsetLabels: body.UnsetLabels, Annotations: body.Annotations, Binds: body.Binds, Unmount: body.Unmount,
		Disconnect: body.Disconnect, LogDriver: body.LogDriver, LogOptions: body.LogOptions, Undo: body.Undo, DryRun: body.DryRun,
	}
	var err error
	if body.Resources != nil || body.RestartPolicy != nil {
		var update updateBody
		if body.Resources != nil {
			update.Resources = *body.Resources
		}
		if body.RestartPolicy != nil {
			update.RestartPolicy = *body.RestartPolicy
		}
		if req.UpdateRequest, err = toUpdate(update, version); err != nil {
			return req, err
		}
		if body.Resources == nil {
			req.Resources = nil
		}
	}
	if req.Publish, _, err = toPorts(body.PortBindings, version); err != nil {
		return req, err
	}
	if req.Mounts, err = toMounts(body.Mounts, version); err != nil {
		return req, err
	}
	for name, e := range body.Connect {
		ep, err := toEndpoint(e, version)
		if err != nil {
			return req, err
		}
		if req.Connect == nil {
			req.Connect = map[string]container.EndpointSettings{}
		}
		req.Connect[name] = ep
	}
	return req, nil
}

func (s *Server) containerUpgrade(w http.ResponseWriter, r *request) error {
	grace, err := r.query.number("grace")
	if err != nil || grace < 0 {
		return errs.New(errs.Invalid, "invalid grace %q: want seconds", r.query.get("grace"))
	}
	done, err := s.Containers.Upgrade(r.steady(), r.id(), containers.UpgradeRequest{Image: r.query.get("image"), Grace: time.Duration(grace) * time.Second, DryRun: r.query.flag("dryrun")})
	if err != nil {
		return err
	}
	return ok(w, toEdited(done))
}
