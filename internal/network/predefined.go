package network

import (
	"context"
	"fmt"
	"net/netip"
	"reflect"
	"strconv"
	"time"

	"corten.dev/corten/internal/errs"
)

// load brings the stored networks and the predefined ones to life.
func (l *Local) load(ctx context.Context) error {
	recs, err := l.stored()
	if err != nil {
		return err
	}
	have := map[string]Network{}
	for _, rec := range recs {
		if rec.Predefined {
			have[rec.Name] = rec
			continue
		}
		nw, err := l.live(rec)
		if err == nil && nw.drv != nil {
			err = nw.drv.raise(ctx)
		}
		if err != nil {
			l.log.Error("network is not usable", "network", rec.Name, "err", err)
			if nw == nil {
				continue
			}
			if nw.drv == nil {
				nw.drv = &unusable{l, nw, err}
			}
		}
		l.put(nw)
	}
	for _, name := range []string{nameHost, nameNone} {
		rec, ok := have[name]
		if !ok {
			driver := name
			if name == nameNone {
				driver = driverNull
			}
			rec = Network{ID: newID(), Name: name, Driver: driver, Created: time.Now().UTC(), EnableIPv4: true, Predefined: true, IPAM: IPAM{Driver: "default"}}
			if err := l.save(rec); err != nil {
				return err
			}
		}
		l.put(&network{rec: rec, eps: map[string]*Endpoint{}})
	}
	if l.opt.Bridge == nameNone {
		return nil
	}
	return l.loadDefault(ctx, have[nameBridge])
}

// loadDefault makes the default bridge of the engine's options; its record keeps only what must stay the same: id and subnet.
func (l *Local) loadDefault(ctx context.Context, old Network) error {
	rec := Network{ID: old.ID, Name: nameBridge, Driver: nameBridge, Created: old.Created, EnableIPv4: true, EnableIPv6: l.opt.IPv6, Predefined: true, IPAM: IPAM{Driver: "default"}}
	if rec.ID == "" {
		rec.ID, rec.Created = newID(), time.Now().UTC()
	}
	mtu := l.opt.MTU
	if mtu == 0 {
		mtu = l.hostMTU()
	}
	rec.Options = map[string]string{optDflt: "true", optName: l.opt.Bridge, optICC: strconv.FormatBool(!l.opt.NoICC), optMasq: strconv.FormatBool(!l.opt.NoMasquerade),
		optHostIP: "0.0.0.0", optMTU: strconv.Itoa(mtu)}
	if l.opt.HostIP.IsValid() {
		rec.Options[optHostIP] = l.opt.HostIP.String()
	}
	pool4, err := l.defaultPool4(old)
	if err != nil {
		return err
	}
	rec.IPAM.Pools = []Pool{pool4}
	if l.opt.IPv6 {
		p := l.opt.BIP6
		if !p.IsValid() {
			if p = l.opt.FixedCIDRv6; !p.IsValid() {
				p = uniqueLocal(rec.ID)
			}
			p = netip.PrefixFrom(p.Masked().Addr().Next(), p.Bits())
		}
		rec.IPAM.Pools = append(rec.IPAM.Pools, Pool{Subnet: p.Masked(), Gateway: p.Addr(), Range: l.opt.FixedCIDRv6})
	}
	nw, err := l.live(rec)
	if err != nil {
		return err
	}
	nw.isDefault = true
	if err := l.fits(nw); err != nil {
		return err
	}
	if l.opt.DefaultGateway.IsValid() {
		nw.v4[0].via = l.opt.DefaultGateway
		nw.v4[0].claim(nw.v4[0].via)
	}
	if l.opt.DefaultGateway6.IsValid() && nw.v6 != nil {
		nw.v6[0].via = l.opt.DefaultGateway6
		nw.v6[0].claim(nw.v6[0].via)
	}
	if err := nw.drv.raise(ctx); err != nil {
		return fmt.Errorf("default bridge: %w", err)
	}
	l.put(nw)
	if reflect.DeepEqual(rec, old) {
		return nil
	}
	if err := l.save(rec); err != nil {
		if old.ID == "" {
			return err
		}
		l.log.Error("settings of the default bridge are not kept", "err", err) // an engine comes up on a full disk, too; what must stay the same did
	}
	return nil
}

// fits checks what was set for the default bridge against its subnets.
func (l *Local) fits(nw *network) error {
	for _, c := range []struct {
		key  string
		list subnets
		a    netip.Addr
	}{
		{"fixed-cidr", nw.v4, l.opt.FixedCIDR.Addr()}, {"fixed-cidr-v6", nw.v6, l.opt.FixedCIDRv6.Addr()},
		{"default-gateway", nw.v4, l.opt.DefaultGateway}, {"default-gateway-v6", nw.v6, l.opt.DefaultGateway6},
	} {
		if c.a.IsValid() && c.list.of(c.a) == nil {
			return errs.New(errs.Invalid, "%s: %s is not in the default bridge's subnet", c.key, c.a)
		}
	}
	return nil
}

func (l *Local) defaultPool4(old Network) (Pool, error) {
	if p := l.opt.BIP; p.IsValid() {
		return Pool{Subnet: p.Masked(), Gateway: p.Addr(), Range: l.opt.FixedCIDR}, nil
	}
	taken, own, err := l.takenSubnets(l.opt.Bridge)
	if err != nil {
		return Pool{}, err
	}
	if own.IsValid() { // the bridge is there: its address rules, as with Docker
		return Pool{Subnet: own.Masked(), Gateway: own.Addr(), Range: l.opt.FixedCIDR}, nil
	}
	if len(old.IPAM.Pools) > 0 && !overlapsAny(old.IPAM.Pools[0].Subnet, taken) {
		p := old.IPAM.Pools[0]
		p.Range = l.opt.FixedCIDR
		return p, nil
	}
	subnet, err := freeSubnet(ofFamily(l.opt.Pools, true), taken)
	if err != nil {
		return Pool{}, err
	}
	return Pool{Subnet: subnet, Gateway: subnet.Addr().Next(), Range: l.opt.FixedCIDR}, nil
}

// put registers a network. Only New and Create call it, the latter with mu held.
func (l *Local) put(nw *network) {
	l.nets[nw.rec.ID] = nw
	l.names[nw.rec.Name] = nw.rec.ID
	if nw.br != "" {
		l.egress.Note(nw.br, nw.egress)
	}
}
