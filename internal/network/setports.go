package network

import (
	"context"
	"errors"
	"slices"
)

// SetPorts changes what a running container publishes. Ports that it goes on publishing keep their host ports and their connections, but for those of a range that is cut: it is one element
// of the table, and made anew without the ports that go. When one of the new ones cannot be had, nothing has changed.
func (l *Local) SetPorts(ctx context.Context, owner string, ports []Port) error {
	bx, ctx, done, err := l.change(ctx, owner)
	if err != nil {
		return err
	}
	defer done()
	l.mu.Lock()
	had, kept, shown := bx.req.Ports, slices.Clone(bx.bindings), slices.Clone(bx.sb.Ports)
	p := l.planOf(bx)
	l.mu.Unlock()
	if err := l.publish(bx, p, Runs(beyond(ports, had))); err != nil {
		l.mu.Lock()
		made := slices.DeleteFunc(slices.Clone(bx.bindings), func(b *binding) bool { return slices.Contains(kept, b) })
		bx.sb.Ports = shown
		l.mu.Unlock()
		return errors.Join(err, l.takeBack(ctx, bx, made))
	}
	if err := l.publishLess(ctx, bx, p, beyond(had, ports)); err != nil {
		return err
	}
	l.mu.Lock()
	bx.req.Ports = slices.Clone(ports)
	l.mu.Unlock()
	return l.steer(ctx, bx, p, true)
}

// beyond are the ports of a list, one by one, that another does not have.
func beyond(list, other []Port) (more []Port) {
	have := map[Port]bool{}
	for p := range Each(other) {
		have[p] = true
	}
	for p := range Each(list) {
		if !have[p] {
			more = append(more, p)
		}
	}
	return more
}

// publishLess takes some ports back.
func (l *Local) publishLess(ctx context.Context, bx *box, p plan, gone []Port) error {
	if len(gone) == 0 {
		return nil
	}
	l.mu.Lock()
	var drop []*binding
	var left []Port // of ranges that are cut
	for _, b := range bx.bindings {
		of := slices.Collect(Each([]Port{b.Port}))
		stay := slices.DeleteFunc(slices.Clone(of), func(made Port) bool { return asks(gone, made) })
		if len(stay) < len(of) {
			drop, left = append(drop, b), append(left, stay...)
			bx.sb.Ports = slices.DeleteFunc(slices.Clone(bx.sb.Ports), func(shown Port) bool { return shown == b.Port })
		}
	}
	l.mu.Unlock()
	if err := l.takeBack(ctx, bx, drop); err != nil {
		return err
	}
	return l.publish(bx, p, Runs(left))
}

// asks tells whether a published port is what one of those asked for became.
func asks(list []Port, made Port) bool {
	return slices.ContainsFunc(list, func(asked Port) bool {
		return made.Proto == asked.Proto && made.ContainerPort == asked.ContainerPort && (!asked.HostIP.IsValid() || made.HostIP == asked.HostIP.Unmap()) &&
			(asked.HostPort == 0 || made.HostPort >= asked.HostPort && made.HostPort <= max(asked.HostPort, asked.HostPortEnd))
	})
}
