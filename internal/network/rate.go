package network

import (
	"errors"
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/linux/netlink"
	"golang.org/x/sys/unix"
)

// The options of a network, and the annotations of a container, that bound how fast a container sends and receives on each of its networks, in bits per second (ParseRate). Where both
// say something, the lower one counts. They are token buckets of the kernel: what goes to the container waits at the host's end of its interface, what it sends at its own end.
const (
	OptionRateEgress  = "dev.corten.rate.egress"
	OptionRateIngress = "dev.corten.rate.ingress"
)

// Rates are bits per second; 0 is unlimited.
type Rates struct {
	Egress, Ingress uint64
}

// The least and the most that make sense: slower, one packet waits for about a second.
const minRate, maxRate = 16_000, 1_000_000_000_000

// ParseRate reads bits per second: a number, with k, m or g after it for thousands, millions and thousands of millions. It may have a fraction.
func ParseRate(s string) (uint64, error) {
	number, factor := s, 1.0
	for suffix, f := range map[string]float64{"k": 1e3, "m": 1e6, "g": 1e9} {
		if rest, ok := strings.CutSuffix(strings.ToLower(s), suffix); ok {
			number, factor = rest, f
			break
		}
	}
	v, err := strconv.ParseFloat(number, 64)
	if v *= factor; err != nil || strings.Trim(number, "0123456789.") != "" || v < minRate || v > maxRate {
		return 0, errs.New(errs.Invalid, "rate %q: want bits per second from 16k to 1000g, such as 500k, 10m or 1.5g", s)
	}
	return uint64(math.Round(v)), nil
}

// ReadRates reads them from options or annotations.
func ReadRates(options map[string]string) (r Rates, err error) {
	for key, to := range map[string]*uint64{OptionRateEgress: &r.Egress, OptionRateIngress: &r.Ingress} {
		if text, given := options[key]; given {
			if *to, err = ParseRate(text); err != nil {
				return r, errs.New(errs.Invalid, "%s: %w", key, err)
			}
		}
	}
	return r, nil
}

// within is the lower one of each.
func (r Rates) within(o Rates) Rates {
	lower := func(a, b uint64) uint64 {
		if a == 0 || b != 0 && b < a {
			return b
		}
		return a
	}
	return Rates{lower(r.Egress, o.Egress), lower(r.Ingress, o.Ingress)}
}

// bucket adds a token bucket for a rate: bursts of 10 ms, a queue of 50 ms, and no less than a few packets.
func bucket(b *netlink.Batch, index int, rate uint64) {
	rate /= 8
	size := func(share, least uint64) uint32 { return uint32(min(max(rate/share, least), math.MaxUint32)) }
	b.TBF(index, rate, size(100, 16<<10), size(20, 64<<10))
}

// shapeNew bounds the rates of new interfaces, before anything runs behind them.
func (l *Local) shapeNew(bx *box, nets []*network, eps []Endpoint, ns *os.File) error {
	l.mu.Lock()
	want, bounded := bx.ratesOn(nets)
	l.mu.Unlock()
	if !bounded || len(eps) == 0 {
		return nil
	}
	return l.shape(nets, eps, want, make([]Rates, len(eps)), ns)
}

// shape changes the rates of interfaces from what they had. ns is the container's namespace.
func (l *Local) shape(nets []*network, eps []Endpoint, want, had []Rates, ns *os.File) error {
	c, err := l.rt.Take()
	if err != nil {
		return err
	}
	defer l.rt.Give(c)
	var host, gone netlink.Batch
	inside := map[string]uint64{} // by interface; 0: no bound any more
	for i, ep := range eps {
		if r := want[i].Egress; r != had[i].Egress {
			inside[ep.Interface] = r
		}
		r := want[i].Ingress
		if r == had[i].Ingress {
			continue
		}
		name := nets[i].drv.hostLink(ep)
		switch {
		case name == "" && r == 0:
			continue // it was refused a moment ago
		case name == "":
			return noHostEnd(nets[i])
		}
		link, err := c.LinkByName(name)
		if err != nil {
			return err
		}
		setBucket(&host, &gone, link.Index, r)
	}
	if err := errors.Join(noBucket(c.Do(&host)), noneSet(c.Do(&gone))); err != nil || len(inside) == 0 {
		return err
	}
	return l.inside(ns, func(in *netlink.Conn) error {
		var b, gone netlink.Batch
		for name, rate := range inside {
			link, err := in.LinkByName(name)
			if err != nil {
				return err
			}
			setBucket(&b, &gone, link.Index, rate)
		}
		return errors.Join(noBucket(in.Do(&b)), noneSet(in.Do(&gone)))
	})
}

// setBucket asks for a bound, or, with 0, for none.
func setBucket(set, gone *netlink.Batch, index int, rate uint64) {
	if rate > 0 {
		bucket(set, index, rate)
	} else {
		gone.DelQdisc(index)
	}
}

// noneSet forgives that a container has taken its own bound away already.
func noneSet(err error) error {
	if netlink.OnlyErrno(err, unix.ENOENT) || netlink.OnlyErrno(err, unix.EINVAL) {
		return nil
	}
	return err
}

func noHostEnd(nw *network) error {
	return errs.New(errs.NotImplemented, "%s needs networks of driver bridge: network %s (%s) has no end of the interface on the host", OptionRateIngress, nw.rec.Name, nw.rec.Driver)
}

// noBucket says what the kernel lacks.
func noBucket(err error) error {
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) {
		return errs.New(errs.NotImplemented, "the kernel cannot limit rates of interfaces (enable CONFIG_NET_SCHED and CONFIG_NET_SCH_TBF, or load sch_tbf): %w", err)
	}
	if err != nil {
		return fmt.Errorf("limit the rate of a network: %w", err)
	}
	return nil
}

// ratesOn are the container's rates on networks. mu is held, or nobody else knows the box.
func (bx *box) ratesOn(nets []*network) (all []Rates, any bool) {
	for _, nw := range nets {
		r := bx.req.Rates.within(nw.rates)
		all, any = append(all, r), any || r != Rates{}
	}
	return all, any
}
