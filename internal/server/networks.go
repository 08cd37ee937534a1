package server

import (
	"net/http"

	wire "github.com/moby/moby/api/types/network"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/network"
)

func (s *Server) networkRoutes() []entry {
	return []entry{
		{"GET /networks", s.networksList},
		{"POST /networks/create", s.networkCreate},
		{"POST /networks/prune", s.networksPrune},
		{"GET /networks/**", s.networkInspect},
		{"DELETE /networks/**", s.networkRemove},
		{"POST /networks/**/update", s.networkUpdate},
		{"POST /networks/**/connect", s.networkConnect},
		{"POST /networks/**/disconnect", s.networkDisconnect},
	}
}

func (s *Server) networksList(w http.ResponseWriter, r *request) error {
	filters, err := r.query.filters()
	if err != nil {
		return err
	}
	list, err := s.Networks.List(r.Context(), filters)
	if err != nil {
		return err
	}
	if r.version >= 52 {
		out := make([]wire.Summary, len(list))
		for i, view := range list {
			out[i].Network = fromNetwork(view.Network)
		}
		return ok(w, out)
	}
	out := make([]wire.Inspect, len(list))
	for i, view := range list {
		out[i].Network = fromNetwork(view.Network)
		out[i].Containers = map[string]wire.EndpointResource{}
		if r.version < 28 { // since then only inspect tells who is on a network
			out[i].Containers = members(view)
		}
	}
	return ok(w, out)
}

func (s *Server) networkCreate(w http.ResponseWriter, r *request) error {
	var body wire.CreateRequest
	if err := readAddressed[networkText](r.Request, &body); err != nil {
		return err
	}
	if body.Name == "" {
		return errs.New(errs.Invalid, "network name cannot be empty")
	}
	if r.version < 48 {
		body.EnableIPv4 = nil
	}
	nw, err := toNetwork(body)
	if err != nil {
		return err
	}
	made, err := s.Networks.Create(r.steady(), nw)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusCreated, wire.CreateResponse{ID: made.ID})
}

func (s *Server) networksPrune(w http.ResponseWriter, r *request) error {
	filters, err := r.query.filters()
	if err != nil {
		return err
	}
	deleted, err := s.Networks.Prune(r.steady(), filters)
	if err != nil {
		return err
	}
	return ok(w, wire.PruneReport{NetworksDeleted: deleted})
}

func (s *Server) networkInspect(w http.ResponseWriter, r *request) error {
	if scope := r.query.get("scope"); scope != "" && scope != "local" {
		return errs.New(errs.NotFound, "network %s not found", r.id())
	}
	view, err := s.Networks.Inspect(r.Context(), r.id())
	if err != nil {
		return err
	}
	out := struct {
		wire.Inspect
		Egress *network.EgressCount `json:",omitempty"` // ours: what the egress list let through and dropped
	}{wire.Inspect{Network: fromNetwork(view.Network), Containers: members(view)}, view.Egress}
	if r.version >= 52 {
		out.Status = subnetStatus(view)
	}
	return ok(w, out)
}

func (s *Server) networkRemove(w http.ResponseWriter, r *request) error {
	if err := s.Networks.Remove(r.steady(), r.id()); err != nil {
		return err
	}
	return noContent(w)
}

func (s *Server) networkConnect(w http.ResponseWriter, r *request) error {
	var body wire.ConnectRequest
	if err := readAddressed[connectText](r.Request, &body); err != nil {
		return err
	}
	if body.Container == "" {
		return errs.New(errs.Invalid, "invalid container name: it is empty")
	}
	ep, err := toEndpoint(body.EndpointConfig, r.version)
	if err != nil {
		return err
	}
	if err := s.Networks.Connect(r.steady(), r.id(), body.Container, ep); err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

func (s *Server) networkDisconnect(w http.ResponseWriter, r *request) error {
	var body wire.DisconnectRequest
	if err := readJSON(r.Request, &body); err != nil {
		return err
	}
	if body.Container == "" {
		return errs.New(errs.Invalid, "invalid container name: it is empty")
	}
	if err := s.Networks.Disconnect(r.steady(), r.id(), body.Container, body.Force); err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}
