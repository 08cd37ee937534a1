package network

import (
	"maps"
	"slices"
	"strconv"

	"corten.dev/corten/internal/errs"
)

// A configuration-only network is a record and nothing else: no bridge, no subnet of its own, nobody joins it. Others are made "from" it: they take its settings for their own,
// and it stays while they do.

// checkConfigOnly refuses what such a network cannot say.
func checkConfigOnly(rec *Network) error {
	switch {
	case rec.ConfigFrom != "":
		return errs.New(errs.Forbidden, "a configuration network cannot depend on another configuration network")
	case rec.Internal || rec.Attachable:
		return errs.New(errs.Forbidden, "configuration network can only contain network specific fields. Network operator fields like [ ingress | internal | attachable | scope ] are not supported.")
	}
	return nil
}

// fromConfig takes the settings of the network that rec is made from, which must have none of its own.
func (l *Local) fromConfig(rec *Network) error {
	if rec.ConfigFrom == "" {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	from := l.nets[l.names[rec.ConfigFrom]]
	if from == nil {
		from = l.nets[rec.ConfigFrom]
	}
	switch {
	case from == nil || !from.rec.ConfigOnly:
		return errs.New(errs.NotFound, "configuration network %q does not exist", rec.ConfigFrom)
	case len(rec.IPAM.Pools)+len(rec.IPAM.Options)+len(rec.Labels) > 0 || rec.EnableIPv6 || rec.IPAM.Driver != "" && rec.IPAM.Driver != ipamDefault:
		return errs.New(errs.Forbidden, "user specified configurations are not supported if the network depends on a configuration network")
	case len(rec.Options) > 0:
		return errs.New(errs.Forbidden, "network driver options are not supported if the network depends on a configuration network")
	}
	c := clone(from.rec)
	rec.ConfigFrom = c.Name
	rec.IPAM, rec.Options, rec.Labels, rec.EnableIPv6, rec.EnableIPv4 = c.IPAM, c.Options, c.Labels, c.EnableIPv6, rec.EnableIPv4 && c.EnableIPv4
	return nil
}

// madeFrom names a network that was made from a configuration network, if there is one. mu is held.
func (l *Local) madeFrom(config *network) string {
	for _, nw := range l.nets {
		if config.rec.ConfigOnly && nw.rec.ConfigFrom == config.rec.Name {
			return nw.rec.Name
		}
	}
	return ""
}

// withDefaults gives a new network the options that the engine's settings name for its driver, where it has none itself, and reads those that say which families it is for.
func (l *Local) withDefaults(rec *Network) error {
	if more := l.opt.DriverOptions[rec.Driver]; len(more) > 0 {
		all := maps.Clone(more)
		maps.Copy(all, rec.Options)
		rec.Options = all
	}
	rec.EnableIPv4 = rec.EnableIPv4 || !rec.EnableIPv6 || slices.ContainsFunc(rec.IPAM.Pools, func(p Pool) bool { return p.Subnet.Addr().Is4() })
	for key, field := range map[string]*bool{optIPv4: &rec.EnableIPv4, optIPv6: &rec.EnableIPv6} {
		val, ok := rec.Options[key]
		if !ok {
			continue
		}
		on, err := strconv.ParseBool(val)
		if err != nil {
			return errs.New(errs.Invalid, "failed to parse %s value: %s (%w)", key, val, err)
		}
		*field = on
		delete(rec.Options, key)
	}
	if rec.Driver == nameBridge && !rec.EnableIPv4 && !rec.EnableIPv6 { // the other drivers make networks without addresses, for who brings his own
		return errs.New(errs.Invalid, "IPv4 or IPv6 must be enabled")
	}
	return nil
}

var errConfigOnly = errs.New(errs.Forbidden, "cannot create endpoint on configuration-only network")

// ipamDefault is the driver that hands out the addresses of the pools itself.
const ipamDefault = "default"
