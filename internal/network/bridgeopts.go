package network

import (
	"errors"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"corten.dev/corten/internal/errs"
	"golang.org/x/sys/unix"
)

// The options of a bridge network, as Docker names them.
const (
	optName    = "com.docker.network.bridge.name"
	optICC     = "com.docker.network.bridge.enable_icc"
	optMasq    = "com.docker.network.bridge.enable_ip_masquerade"
	optHostIP  = "com.docker.network.bridge.host_binding_ipv4"
	optMode4   = "com.docker.network.bridge.gateway_mode_ipv4"
	optMode6   = "com.docker.network.bridge.gateway_mode_ipv6"
	optInhibit = "com.docker.network.bridge.inhibit_ipv4"
	optTrusted = "com.docker.network.bridge.trusted_host_interfaces"
	optDflt    = "com.docker.network.bridge.default_bridge"
	optMTU     = "com.docker.network.driver.mtu"
	optPrefix  = "com.docker.network.container_iface_prefix"
	optSNAT4   = "com.docker.network.host_ipv4"
	optSNAT6   = "com.docker.network.host_ipv6"
	optIPv4    = "com.docker.network.enable_ipv4" // what the engine's settings say for networks that do not: see Create
	optIPv6    = "com.docker.network.enable_ipv6"
)

// gatewayMode is how a bridge network, in one address family, meets the world.
type gatewayMode string

const (
	// modeNAT: containers leave with the host's address; they are reached by ports of the host.
	modeNAT gatewayMode = "nat"
	// modeOpen is nat, and whoever routes to the containers' own addresses reaches every port of theirs.
	modeOpen gatewayMode = "nat-unprotected"
	// modeRouted: no address is changed. Published ports are open at the containers' own addresses; the host has none for them.
	modeRouted gatewayMode = "routed"
	// modeIsolated: the host itself is not on the network; only for internal ones.
	modeIsolated gatewayMode = "isolated"
)

// goodLinkName says whether the kernel takes s as the name of an interface.
func goodLinkName(s string) bool {
	return s != "" && len(s) < unix.IFNAMSIZ && !strings.ContainsAny(s, "/: \t\n") && s != "." && s != ".." && s != "lo" && s != "all" && s != "default"
}

// readOptions reads the options of a bridge network; an error names the one that makes no sense.
func (nw *network) readOptions() error {
	nw.mode4, nw.mode6 = modeNAT, modeNAT
	for key, val := range nw.rec.Options {
		var err error
		switch key {
		case optName:
			if !goodLinkName(val) {
				err = errors.New("not a name of an interface")
			}
			nw.br = val
		case optICC:
			nw.icc, err = strconv.ParseBool(val)
		case optMasq:
			nw.masq, err = strconv.ParseBool(val)
		case optInhibit:
			nw.inhibit, err = strconv.ParseBool(val)
		case optDflt, optIPv4, optIPv6:
			_, err = strconv.ParseBool(val)
		case optHostIP:
			nw.hostIP, err = netip.ParseAddr(val)
		case optMode4:
			nw.mode4, err = nw.readMode(val)
		case optMode6:
			nw.mode6, err = nw.readMode(val)
		case optTrusted:
			nw.trusted = strings.Split(val, ":")
			if slices.ContainsFunc(nw.trusted, func(name string) bool { return !goodLinkName(name) }) {
				err = errors.New("not names of interfaces, with colons between them")
			}
		case optMTU:
			if nw.mtu, err = strconv.Atoi(val); err == nil && (nw.mtu < 68 || nw.mtu > 65535) {
				return errs.New(errs.Invalid, "invalid MTU number: %d", nw.mtu)
			}
		case optPrefix:
			if nw.prefix = val; !goodLinkName(val + "1000") {
				err = errors.New("not the beginning of a name of an interface")
			}
		case optSNAT4:
			if nw.snat4, err = netip.ParseAddr(val); err == nil && !nw.snat4.Is4() {
				err = errors.New("not an IPv4 address")
			}
		case optSNAT6:
			if nw.snat6, err = netip.ParseAddr(val); err == nil && !nw.snat6.Is6() {
				err = errors.New("not an IPv6 address")
			}
		case OptionEgress: // when the rest is known: newBridge
		default:
			if strings.HasPrefix(key, "com.docker.network.") {
				err = errors.New("not supported by driver bridge")
			}
		}
		if err != nil {
			return errs.New(errs.Invalid, "failed to parse %s value: %s (%w)", key, val, err)
		}
	}
	return nil
}

func (nw *network) readMode(val string) (gatewayMode, error) {
	switch mode := gatewayMode(val); mode {
	case modeNAT, modeOpen, modeRouted:
		return mode, nil
	case modeIsolated:
		if !nw.rec.Internal {
			return "", errors.New("gateway mode 'isolated' can only be used for an internal network")
		}
		return mode, nil
	}
	return "", errors.New("unknown gateway mode")
}

// mode is the gateway mode of an address's family.
func (nw *network) mode(a netip.Addr) gatewayMode {
	if a.Is4() {
		return nw.mode4
	}
	return nw.mode6
}

// onBridge says whether the host has the gateway address of a pool itself.
func (nw *network) onBridge(p Pool) bool {
	return p.Gateway.IsValid() && nw.mode(p.Gateway) != modeIsolated && !(p.Gateway.Is4() && nw.inhibit)
}

// bridgeOptions are those that few networks have.
type bridgeOptions struct {
	mode4, mode6 gatewayMode
	inhibit      bool       // the bridge itself has no IPv4 address
	trusted      []string   // host's interfaces from where published ports are reached at the containers' own addresses, too
	prefix       string     // of the names of interfaces in containers; empty: eth
	snat4, snat6 netip.Addr // what containers leave with, where not with the address of the interface that they leave by
}
