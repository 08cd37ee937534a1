package server

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/netip"
	"slices"

	"corten.dev/corten/internal/errs"
)

// The wire types read addresses themselves, and what they say of one that is none ("invalid JSON: ParseAddr…") does not tell which it was. So bodies that they
// refuse are looked through once more, with the addresses as the text that they are.

// networkText are the addresses of a request for a network.
type networkText struct {
	IPAM *struct {
		Config []struct {
			Subnet, IPRange, Gateway string
			AuxiliaryAddresses       map[string]string
		}
	}
}

func (n networkText) check() error {
	if n.IPAM == nil {
		return nil
	}
	var bad []error
	for _, c := range n.IPAM.Config {
		if !prefixText(c.Subnet) {
			bad = append(bad, fmt.Errorf("invalid subnet %s: invalid CIDR block notation", c.Subnet))
			continue // the others are judged by it
		}
		if !prefixText(c.IPRange) {
			bad = append(bad, fmt.Errorf("invalid ip-range %s: invalid CIDR block notation", c.IPRange))
		}
		if !addrText(c.Gateway) {
			bad = append(bad, fmt.Errorf("invalid gateway %s: invalid address", c.Gateway))
		}
		for _, name := range slices.Sorted(maps.Keys(c.AuxiliaryAddresses)) {
			if !addrText(c.AuxiliaryAddresses[name]) {
				bad = append(bad, fmt.Errorf("invalid auxiliary address %s: invalid address", name))
			}
		}
	}
	return together("invalid network config", bad)
}

// endpointText are the addresses that are asked for on one network.
type endpointText struct {
	IPAMConfig *struct {
		IPv4Address, IPv6Address string
		LinkLocalIPs             []string
	}
}

func (e *endpointText) check() error {
	if e == nil || e.IPAMConfig == nil {
		return nil
	}
	var bad []error
	if ip := e.IPAMConfig.IPv4Address; !addrText(ip) {
		bad = append(bad, fmt.Errorf("invalid IPv4 address: %s", ip))
	}
	if ip := e.IPAMConfig.IPv6Address; !addrText(ip) {
		bad = append(bad, fmt.Errorf("invalid IPv6 address: %s", ip))
	}
	for _, ip := range e.IPAMConfig.LinkLocalIPs {
		if !addrText(ip) {
			bad = append(bad, fmt.Errorf("invalid link-local IP address: %s", ip))
		}
	}
	return together("invalid endpoint settings", bad)
}

// connectText are the addresses of a request to connect a container.
type connectText struct{ EndpointConfig *endpointText }

func (c connectText) check() error { return c.EndpointConfig.check() }

// createText are the addresses of a request for a container.
type createText struct {
	NetworkingConfig *struct{ EndpointsConfig map[string]*endpointText }
}

func (c createText) check() error {
	if c.NetworkingConfig == nil {
		return nil
	}
	for _, name := range slices.Sorted(maps.Keys(c.NetworkingConfig.EndpointsConfig)) {
		if err := c.NetworkingConfig.EndpointsConfig[name].check(); err != nil {
			return err
		}
	}
	return nil
}

// addressed is one of the above.
type addressed interface{ check() error }

// readAddressed is readJSON for a body in which text finds addresses.
func readAddressed[T addressed](r *http.Request, v any) error {
	if err := checkJSON(r); err != nil {
		return err
	}
	body, err := io.ReadAll(http.MaxBytesReader(nil, r.Body, maxBody))
	if err != nil {
		return err
	}
	err = decodeJSON(bytes.NewReader(body), v)
	if err == nil {
		return nil
	}
	var text T
	if json.Unmarshal(body, &text) == nil { // else it is no JSON, or has no text where addresses belong
		if bad := text.check(); bad != nil {
			return bad
		}
	}
	return err
}

func together(what string, bad []error) error {
	if len(bad) == 0 {
		return nil
	}
	return errs.New(errs.Invalid, "%s:\n%w", what, errors.Join(bad...))
}

func prefixText(s string) bool {
	_, err := netip.ParsePrefix(s)
	return s == "" || err == nil
}

func addrText(s string) bool {
	_, err := netip.ParseAddr(s)
	return s == "" || err == nil
}
