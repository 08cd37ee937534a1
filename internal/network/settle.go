package network

import (
	"fmt"
	"time"

	"corten.dev/corten/internal/linux/netlink"
	"golang.org/x/sys/unix"
)

// settleLimit is how long a start waits for the kernel to put its links to work; beyond that the start is worth more than its first packet.
const settleLimit = 3 * time.Second

// settleHost waits until the host's side of new endpoints carries packets: the ports, and the bridges, which have a carrier only once their first port has.
//
// A link whose other end comes up has its carrier at once, but no queue: the kernel gives it one a little later, in the background (link watch), normally after some
// microseconds, on a busy machine after many milliseconds. Until then everything sent to the container is dropped silently, though the bridge says that it forwards: the first
// connection's SYN, or the question for its address, is lost and comes again after a second. The link's operational state becomes "up" together with the queue.
// From kernel 6.8 on whoever asks for a link gets the noting done first, and the first look is enough.
func (l *Local) settleHost(host *netlink.Conn, nets []*network, eps []Endpoint) error {
	names := make([]string, 0, 2*len(eps))
	for i, ep := range eps {
		names = append(names, nets[i].drv.carriers(ep)...)
	}
	end := time.Now().Add(settleLimit)
	for _, name := range names {
		for pause := 50 * time.Microsecond; ; pause = min(2*pause, 5*time.Millisecond) {
			up, err := operational(host, name)
			if err != nil {
				return err
			}
			if up {
				break
			}
			if time.Now().After(end) {
				l.log.Warn("link does not become ready; the first packets may be lost", "link", name, "waited", settleLimit)
				return nil
			}
			time.Sleep(pause)
		}
	}
	return nil
}

// settleInside looks at the new links of a container once more, which has the kernel note (from 6.8 on) that they are up. They have their queues already: the other ends
// were up before them.
func settleInside(in *netlink.Conn, eps []Endpoint) error {
	for _, ep := range eps {
		if ep.Interface == "" { // a plugin sees to it
			continue
		}
		if _, err := in.LinkByName(ep.Interface); err != nil {
			return err
		}
	}
	return nil
}

// operational says whether the operational state of a link is "up": an unknown one, which a new link has, is not.
func operational(c *netlink.Conn, name string) (up bool, err error) {
	var b netlink.Batch
	b.Begin("look at link "+name, unix.RTM_GETLINK, 0, make([]byte, unix.SizeofIfInfomsg))
	b.String(unix.IFLA_IFNAME, name)
	b.End()
	p, err := c.Get(&b)
	if err != nil {
		return false, err
	}
	if len(p) < unix.SizeofIfInfomsg {
		return false, netlink.ErrMalformed
	}
	err = netlink.Attrs(p[unix.SizeofIfInfomsg:], func(typ uint16, data []byte) {
		if typ == unix.IFLA_OPERSTATE && len(data) > 0 {
			up = data[0] == operUp
		}
	})
	if err != nil {
		return false, fmt.Errorf("look at link %s: %w", name, err)
	}
	return up, nil
}

const operUp = 6 // IF_OPER_UP of RFC 2863
