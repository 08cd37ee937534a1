package server

import (
	"net/http"

	"corten.dev/corten/internal/errs"
)

// notManager is what Docker says on a host that is in no swarm.
const notManager = "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" to connect this node to swarm and try again."

// absent answers for a part of the API that this version does not have: never silently, never with success.
func absent(text string) handler {
	return func(http.ResponseWriter, *request) error { return errs.New(errs.NotImplemented, "%s", text) }
}

// notSwarm answers as a Docker node outside a swarm does.
func notSwarm(http.ResponseWriter, *request) error {
	return errs.New(errs.Unavailable, "%s", notManager)
}

func notPartOfSwarm(http.ResponseWriter, *request) error {
	return errs.New(errs.Unavailable, "This node is not part of a swarm")
}

func noPlugin(_ http.ResponseWriter, r *request) error {
	return errs.New(errs.NotFound, "plugin %q not found", r.id())
}

// noPlugins lists what docker installed from images, which is nothing; filters that mean nothing are refused nevertheless.
func noPlugins(w http.ResponseWriter, r *request) error {
	filters, err := r.query.filters()
	if err != nil {
		return err
	}
	if err := filters.Accept("capability", "enabled"); err != nil {
		return err
	}
	if _, err := filters.Bool("enabled", false); err != nil {
		return err
	}
	return ok(w, []struct{}{})
}

// absentRoutes are swarm and plugins.
func (s *Server) absentRoutes() []entry {
	const swarm = "swarm mode is not part of this version"
	const plugins = "plugins that docker installs from images are not supported: run the plugin on the host, with its socket, .spec or .json file in a plugin folder"
	list := []entry{
		{"GET /swarm", notSwarm},
		{"GET /swarm/unlockkey", notSwarm},
		{"POST /swarm/init", absent(swarm)},
		{"POST /swarm/join", absent(swarm)},
		{"POST /swarm/leave", notPartOfSwarm},
		{"POST /swarm/update", notSwarm},
		{"POST /swarm/unlock", notPartOfSwarm},
		{"GET /plugins", noPlugins},
		{"GET /plugins/privileges", absent(plugins)},
		{"POST /plugins/pull", absent(plugins)},
		{"POST /plugins/create", absent(plugins)},
		{"GET /plugins/**/json", noPlugin},
		{"DELETE /plugins/**", noPlugin},
		{"POST /services/create", notSwarm},
		{"GET /services/*/logs", notSwarm},
		{"GET /tasks", notSwarm},
		{"GET /tasks/*", notSwarm},
		{"GET /tasks/*/logs", notSwarm},
		{"POST /secrets/create", notSwarm},
		{"POST /configs/create", notSwarm},
	}
	for _, verb := range []string{"enable", "disable", "upgrade", "push", "set"} {
		list = append(list, entry{"POST /plugins/**/" + verb, noPlugin})
	}
	for _, noun := range []string{"nodes", "services", "secrets", "configs"} {
		list = append(list, entry{"GET /" + noun, notSwarm}, entry{"GET /" + noun + "/*", notSwarm},
			entry{"DELETE /" + noun + "/*", notSwarm}, entry{"POST /" + noun + "/*/update", notSwarm})
	}
	return list
}
