package containers

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"corten.dev/corten/internal/container"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/network"
)

// Links are Docker's oldest way for containers to know each other: --link other:alias. On the default bridge, whose containers have no names there, the container gets lines in its
// hosts file, variables that tell of the other's ports and environment, and, where containers there do not reach each other (--icc=false), a way to those ports. The lines follow
// the other's address when that starts again. On networks of one's own a link is one more name of the other, which only this container knows: that is the network room's.

// linkBook is what the service knows of links beside the records.
type linkBook struct {
	any   atomic.Bool // some container has links on the default bridge; never taken back
	files sync.Mutex  // one hosts file is changed at a time; held over the write of a small file, by design
}

// link is one --link: in a record, "id of the other:alias" (the name, in records of earlier engines).
type link struct{ ref, alias string }

func parseLink(s string) link {
	ref, alias, ok := strings.Cut(strings.TrimPrefix(s, "/"), ":")
	if !ok {
		alias = ref
	}
	return link{ref, alias[strings.LastIndex(alias, "/")+1:]}
}

// linked is a link whose other side runs.
type linked struct {
	link
	rec *container.Record
	ep  network.Endpoint // on the default bridge
}

// ownLinks checks the links of a new container, and notes the others by their ids, so that a link survives a new name.
func (s *Service) ownLinks(rec *container.Record) error {
	var links []string
	for _, text := range rec.Host.Links {
		l := parseLink(text)
		if l.ref == "" || l.alias == "" || strings.Count(text, ":") > 1 {
			return errs.New(errs.Invalid, "bad format for links: %s", text)
		}
		other, err := s.find(l.ref)
		if err != nil {
			return errs.New(errs.Invalid, "could not get container for %s: %w", l.ref, err)
		}
		if other.record().Host.NetworkMode == "host" {
			return errs.New(errs.Invalid, "conflicting options: host type networking can't be used with links. This would result in undefined behavior")
		}
		links = append(links, other.id+":"+l.alias)
	}
	rec.Host.Links = links
	return nil
}

// ownAddresses refuses addresses on the networks that the engine chooses the subnets of.
func ownAddresses(rec *container.Record) error {
	for name, ep := range rec.Networks {
		if slices.Contains([]string{"bridge", "host", "none"}, name) && (ep.IPv4.IsValid() || ep.IPv6.IsValid()) {
			return errs.New(errs.Invalid, "user specified IP address is supported on user defined networks only")
		}
	}
	return nil
}

// legacy tells whether a container's links are those of the default bridge.
func legacy(rec *container.Record) bool {
	return len(rec.Host.Links) > 0 && rec.Host.NetworkMode == "bridge"
}

// linkedTo finds the other sides of a container's links on the default bridge, all of which must run. One that was removed is not linked any more.
func (s *Service) linkedTo(rec *container.Record) ([]linked, error) {
	if !legacy(rec) {
		return nil, nil
	}
	s.links.any.Store(true)
	var all []linked
	for _, text := range rec.Host.Links {
		l := parseLink(text)
		other, err := s.find(l.ref)
		if err != nil {
			continue
		}
		to := other.record()
		if to.Sandbox == nil || !to.State.Status.Live() {
			return nil, errs.New(errs.Conflict, "Cannot link to a non running container: /%s AS /%s/%s", to.Name, rec.Name, l.alias)
		}
		i := slices.IndexFunc(to.Sandbox.Endpoints, func(ep network.Endpoint) bool { return ep.Network == "bridge" })
		if i < 0 {
			return nil, errs.New(errs.Conflict, "Cannot link to /%s, as it does not belong to the default network", to.Name)
		}
		all = append(all, linked{l, to, to.Sandbox.Endpoints[i]})
	}
	return all, nil
}

// hostsLine is the line of a link in the hosts file.
func (l linked) hostsLine() string {
	names := []string{l.alias}
	for _, name := range []string{l.rec.Config.Hostname, l.rec.Name} {
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return fmt.Sprintf("%s\t%s\n", l.ep.IPv4.Addr(), strings.Join(names, " "))
}

// linkHosts writes the lines of a container's links.
func (s *Service) linkHosts(rec *container.Record, b *bytes.Buffer) error {
	all, err := s.linkedTo(rec)
	for _, l := range all {
		b.WriteString(l.hostsLine())
	}
	return err
}

// openings are the ports that a container's links open.
func (s *Service) openings(rec *container.Record) (all []network.Opening) {
	if !legacy(rec) {
		return nil
	}
	for _, text := range rec.Host.Links {
		if other, err := s.find(parseLink(text).ref); err == nil {
			all = append(all, network.Opening{Owner: other.id, Ports: exposedBy(other.record())})
		}
	}
	return all
}

// exposedBy are the ports that a container exposes or publishes, the lowest first, tcp before others.
func exposedBy(rec *container.Record) []network.Port {
	list, err := exposed(rec.Config.ExposedPorts, nil)
	if err != nil {
		return nil // was checked when the container was made
	}
	for p := range network.Each(rec.Host.Ports) {
		list = append(list, network.Port{Proto: p.Proto, ContainerPort: p.ContainerPort})
	}
	rank := func(p network.Port) int { return slices.Index([]string{"tcp", "udp"}, p.Proto) & 3 }
	slices.SortFunc(list, func(a, b network.Port) int {
		return cmp.Or(cmp.Compare(a.ContainerPort, b.ContainerPort), cmp.Compare(rank(a), rank(b)))
	})
	return slices.Compact(list)
}

// linkEnv are the variables of a container's links.
func (s *Service) linkEnv(rec *container.Record) ([]string, error) {
	all, err := s.linkedTo(rec)
	var env []string
	for _, l := range all {
		env = append(env, l.env(rec.Name)...)
	}
	return env, err
}

// env tells of the other's ports (a row of at least three also by its ends), its name, and its own environment.
func (l linked) env(parent string) (env []string) {
	prefix := strings.ToUpper(strings.ReplaceAll(l.alias, "-", "_"))
	ip := l.ep.IPv4.Addr().String()
	url := func(p network.Port) string { return p.Proto + "://" + ip + ":" + strconv.Itoa(int(p.ContainerPort)) }
	name := func(p network.Port) string {
		return prefix + "_PORT_" + strconv.Itoa(int(p.ContainerPort)) + "_" + strings.ToUpper(p.Proto)
	}
	ports := exposedBy(l.rec)
	if len(ports) > 0 {
		env = append(env, prefix+"_PORT="+url(ports[0]))
	}
	for _, row := range rows(ports) {
		first, last := row[0], row[len(row)-1]
		if len(row) < 3 {
			continue
		}
		at := name(first)
		env = append(env, at+"_START="+url(first), at+"_ADDR="+ip, at+"_PROTO="+first.Proto, at+"_PORT_START="+strconv.Itoa(int(first.ContainerPort)),
			at+"_END="+url(last), at+"_PORT_END="+strconv.Itoa(int(last.ContainerPort)))
	}
	for _, p := range ports {
		at := name(p)
		env = append(env, at+"="+url(p), at+"_ADDR="+ip, at+"_PORT="+strconv.Itoa(int(p.ContainerPort)), at+"_PROTO="+p.Proto)
	}
	env = append(env, prefix+"_NAME=/"+parent+"/"+l.alias)
	for _, kv := range l.rec.Config.Env {
		if key, _, ok := strings.Cut(kv, "="); ok && key != "HOME" && key != "PATH" {
			env = append(env, prefix+"_ENV_"+kv)
		}
	}
	return env
}

// rows cuts a sorted list of ports into neighbours of one protocol.
func rows(ports []network.Port) (all [][]network.Port) {
	open := map[string]int{} // protocol -> its last row
	for _, p := range ports {
		at, ok := open[p.Proto]
		if ok && all[at][len(all[at])-1].ContainerPort+1 == p.ContainerPort {
			all[at] = append(all[at], p)
			continue
		}
		open[p.Proto] = len(all)
		all = append(all, []network.Port{p})
	}
	return all
}

// relink has the containers that are linked to one that has just started know its address.
func (s *Service) relink(child *live) {
	if !s.links.any.Load() {
		return
	}
	for _, ctr := range s.table.all() {
		rec := ctr.record()
		if ctr == child || !legacy(rec) || !rec.State.Status.Live() {
			continue
		}
		if all, err := s.linkedTo(rec); err == nil { // with an error, another of its links is down just now: the lines wait for that one
			if err := s.renewLinks(rec, all); err != nil {
				s.Log.Error("hosts file of a linked container", "container", rec.Name, "error", err)
			}
		}
	}
}

// renewLinks changes the lines of links in a running container's hosts file; what the program wrote there stays.
func (s *Service) renewLinks(rec *container.Record, all []linked) error {
	byAlias := map[string]linked{}
	for _, l := range all {
		byAlias[l.alias] = l
	}
	return s.changeHosts(rec, func(line []byte) []byte {
		if l, ok := byAlias[at(strings.Fields(string(line)), 1)]; ok {
			return []byte(l.hostsLine())
		}
		return line
	}, nil)
}

func at(f []string, i int) string {
	if i < len(f) {
		return f[i]
	}
	return ""
}

// shownLinks are a record's links as Docker shows them: /other:/this/alias.
func (s *Service) shownLinks(rec *container.Record) (links []string) {
	for _, text := range rec.Host.Links {
		l := parseLink(text)
		if other, err := s.find(l.ref); err == nil {
			links = append(links, "/"+other.record().Name+":/"+rec.Name+"/"+l.alias)
		}
	}
	return links
}

// unlink removes a link, named by container and alias, from the record and the hosts file; variables stay until the next start.
func (s *Service) unlink(_ context.Context, ref string) error {
	name, alias, ok := strings.Cut(strings.TrimPrefix(ref, "/"), "/")
	if !ok {
		return errs.New(errs.Invalid, "conflict, cannot remove the default link name of the container")
	}
	ctr, err := s.find(name)
	if err != nil {
		return errs.New(errs.NotFound, "cannot get parent /%s for link name /%s", name, name+"/"+alias)
	}
	rec := ctr.record()
	i := slices.IndexFunc(rec.Host.Links, func(text string) bool { return parseLink(text).alias == alias })
	if i < 0 {
		return errs.New(errs.NotFound, "No such link: /%s/%s", name, alias)
	}
	rec = ctr.change(func(rec *container.Record) { rec.Host.Links = slices.Delete(slices.Clone(rec.Host.Links), i, i+1) })
	if err := s.save(ctr, true); err != nil || !rec.State.Status.Live() {
		return err
	}
	return s.changeHosts(rec, func(line []byte) []byte {
		if at(strings.Fields(string(line)), 1) == alias {
			return nil
		}
		return line
	}, nil)
}

// aliasLinks are the links of one endpoint on a network of one's own: alias -> name of the other.
func (s *Service) aliasLinks(links []string) map[string]string {
	if len(links) == 0 {
		return nil
	}
	all := map[string]string{}
	for _, text := range links {
		l := parseLink(text)
		all[l.alias] = l.ref
		if other, err := s.find(l.ref); err == nil {
			all[l.alias] = other.record().Name
		}
	}
	return all
}
