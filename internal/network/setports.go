package network

import (
	"context"
	"errors"
	"slices"

	"corten.dev/corten/internal/errs"
)

// SetPorts changes what a running container publishes. Ports that it goes on publishing keep their host ports and their connections; when one of the new ones cannot be had, nothing has changed.
func (l *Local) SetPorts(ctx context.Context, owner string, ports []Port) error {
	l.mu.Lock()
	bx := l.boxes[owner]
	if bx == nil || !bx.ready {
		l.mu.Unlock()
		return errs.New(errs.NotFound, "sandbox of %s not found", short(owner))
	}
	had := bx.req.Ports
	p := l.planOf(bx)
	l.mu.Unlock()
	var added, gone []Port
	for _, port := range ports {
		if !slices.Contains(had, port) {
			added = append(added, port)
		}
	}
	for _, port := range had {
		if !slices.Contains(ports, port) {
			gone = append(gone, port)
		}
	}
	if err := l.publishMore(ctx, bx, p, added); err != nil {
		return err
	}
	if err := l.publishLess(ctx, bx, gone); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	bx.req.Ports = slices.Clone(ports)
	return nil
}

// publishMore publishes some ports beside those that are, all or none.
func (l *Local) publishMore(ctx context.Context, bx *box, p plan, added []Port) error {
	if len(added) == 0 {
		return nil
	}
	l.mu.Lock()
	had, kept, shown := bx.req.Ports, bx.bindings, bx.sb.Ports
	bx.req.Ports, bx.bindings = added, nil
	l.mu.Unlock()
	err := l.publish(ctx, bx, p)
	if err != nil {
		err = errors.Join(err, l.unpublish(ctx, bx))
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	bx.req.Ports = had
	bx.bindings = append(kept[:len(kept):len(kept)], bx.bindings...)
	if err != nil {
		bx.sb.Ports = shown
	}
	return err
}

// publishLess takes some ports back.
func (l *Local) publishLess(ctx context.Context, bx *box, gone []Port) error {
	if len(gone) == 0 {
		return nil
	}
	of := func(made Port) bool {
		return slices.ContainsFunc(gone, func(asked Port) bool {
			return made.Proto == asked.Proto && made.ContainerPort == asked.ContainerPort && (!asked.HostIP.IsValid() || made.HostIP == asked.HostIP.Unmap()) &&
				(asked.HostPort == 0 || made.HostPort >= asked.HostPort && made.HostPort <= max(asked.HostPort, asked.HostPortEnd))
		})
	}
	l.mu.Lock()
	var kept, drop []*binding
	for _, b := range bx.bindings {
		if of(b.Port) {
			drop = append(drop, b)
		} else {
			kept = append(kept, b)
		}
	}
	bx.bindings = drop
	bx.sb.Ports = slices.DeleteFunc(slices.Clone(bx.sb.Ports), of)
	l.mu.Unlock()
	err := l.unpublish(ctx, bx)
	l.mu.Lock()
	defer l.mu.Unlock()
	bx.bindings = kept
	return err
}
