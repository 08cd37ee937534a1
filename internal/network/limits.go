package network

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/network/egress"
	"corten.dev/corten/internal/task"
)

// Limits are what bounds a container on its networks, beside what these say themselves.
type Limits struct {
	Egress string // as in JoinRequest
	Rates  Rates
}

// SetLimits changes a running container's limits; pid is its first process. Connections that the new list does not have end. On an error nothing has changed.
func (l *Local) SetLimits(ctx context.Context, owner string, pid int, want Limits) (err error) {
	list, err := readList(want.Egress)
	if err != nil {
		return err
	}
	bx, ctx, done, err := l.change(ctx, owner)
	if err != nil {
		return err
	}
	defer done()
	l.mu.Lock()
	p := l.planOf(bx)
	for _, nw := range p.nets {
		if list != nil {
			err = errors.Join(err, l.checkFence(nw))
		}
	}
	if list != nil && len(p.nets) == 0 && bx.onHost() {
		err = errs.New(errs.NotImplemented, "an egress list needs networks of driver bridge: the container has the host's network")
	}
	had, hadList := Limits{bx.req.Egress, bx.req.Rates}, bx.egress
	l.mu.Unlock()
	if err != nil {
		return err
	}
	ns, err := nsOf(pid)
	if err != nil {
		return err
	}
	defer ns.Close()
	var undo task.Undo
	defer undo.OnError(ctx, &err)
	undo.Push(func(ctx context.Context) error { return l.limit(ctx, bx, had, hadList, ns) })
	if err := l.limit(ctx, bx, want, list, ns); err != nil {
		return err
	}
	return l.endFlows([]*member{{bx: bx, p: p, ns: ns}})
}

// onHost says whether it has the host's network. mu is held.
func (bx *box) onHost() bool {
	return slices.ContainsFunc(bx.req.Endpoints, func(er EndpointRequest) bool { return er.Network == nameHost })
}

// limit makes a container's limits what is wanted, in memory, in the rules, for its names and in its interfaces.
func (l *Local) limit(ctx context.Context, bx *box, want Limits, list *egress.List, ns *os.File) error {
	l.mu.Lock()
	p := l.planOf(bx)
	was, _ := bx.ratesOn(p.nets)
	from := bx.egress
	bx.listed = bx.listed || from != nil
	bx.req.Egress, bx.req.Rates, bx.egress = want.Egress, want.Rates, list
	rates, _ := bx.ratesOn(p.nets)
	l.mu.Unlock()
	if err := l.fence(bx); err != nil {
		return err
	}
	if len(p.eps) > 0 && (from != nil || list != nil) {
		if err := l.refreshNames(ctx, bx, ns); err != nil {
			return err
		}
	}
	return l.shape(p.nets, p.eps, rates, was, ns)
}

// What can be changed of a network, by its options.
var changeable = []string{OptionEgress, OptionRateEgress, OptionRateIngress}

// NetworkChange changes a network's limits, which are options of it.
type NetworkChange struct {
	Options map[string]string // of OptionEgress, OptionRateEgress and OptionRateIngress; an empty one is taken away
	Undo    bool              // goes back to what was before the last change, instead
	DryRun  bool
	// Process is the first process of an owner that is on the network; 0 where it has none.
	Process func(owner string) int
}

// Update changes a network's egress list and rates, for the containers that are on it, too; those of their connections end that the list does not have. It tells what differs, in words.
// On an error nothing has changed.
func (l *Local) Update(ctx context.Context, ref string, req NetworkChange) (changes []string, err error) {
	l.created.Lock()
	defer l.created.Unlock()
	l.mu.Lock()
	nw, err := l.find(ref)
	if err != nil {
		l.mu.Unlock()
		return nil, err
	}
	had := nw.rec
	l.mu.Unlock()
	want, changes, err := req.To(had)
	if err != nil {
		return nil, err
	}
	made, err := l.live(want) // so that it is checked as if it were made so
	if err != nil || len(changes) == 0 || req.DryRun {
		return changes, err
	}
	var undo task.Undo
	defer undo.OnError(ctx, &err)
	undo.Push(func(ctx context.Context) error {
		old, err := l.live(had)
		if err != nil {
			return err
		}
		return errors.Join(l.limitNetwork(ctx, nw, old, req.Process), l.save(had))
	})
	if err := l.limitNetwork(ctx, nw, made, req.Process); err != nil {
		return nil, fmt.Errorf("update network %s: %w", had.Name, err)
	}
	return changes, l.save(want)
}

// To is the record with the change, and what differs, in words. The options themselves are not checked.
func (c NetworkChange) To(rec Network) (want Network, changes []string, err error) {
	if want, err = c.options(rec); err != nil {
		return rec, nil, err
	}
	for _, key := range changeable {
		switch v, has := want.Options[key]; {
		case v == rec.Options[key]:
		case !has:
			changes = append(changes, "remove option "+key)
		case rec.Options[key] == "":
			changes = append(changes, "add option "+key)
		default:
			changes = append(changes, "change option "+key)
		}
	}
	return want, changes, nil
}

func (c NetworkChange) options(rec Network) (Network, error) {
	if rec.Predefined {
		return rec, errs.New(errs.Forbidden, "%s is a pre-defined network and cannot be changed", rec.Name)
	}
	if rec.ConfigOnly {
		return rec, errs.New(errs.Forbidden, "%s is a configuration-only network, which only those read that are made from it", rec.Name)
	}
	had := map[string]string{}
	for _, key := range changeable {
		if v, has := rec.Options[key]; has {
			had[key] = v
		}
	}
	options := c.Options
	if c.Undo {
		if rec.Before == nil {
			return rec, errs.New(errs.Conflict, "update network %s: there is nothing to undo: it was never changed", rec.Name)
		}
		options = map[string]string{}
		for _, key := range changeable {
			options[key] = rec.Before[key]
		}
	}
	want := clone(rec)
	if want.Options == nil {
		want.Options = map[string]string{}
	}
	for key, v := range options {
		if !slices.Contains(changeable, key) {
			return rec, errs.New(errs.Invalid, "update network %s: option %s cannot be changed; these can: %v", rec.Name, key, changeable)
		}
		if v == "" {
			delete(want.Options, key)
		} else {
			want.Options[key] = v
		}
	}
	want.Before = had
	return want, nil
}

// member is a container whose limits are changed.
type member struct {
	bx        *box
	p         plan
	was, want []Rates
	ns        *os.File // nil: it has ended
}

// limitNetwork gives a network, and those on it, the limits that another live side of it has.
func (l *Local) limitNetwork(ctx context.Context, nw, to *network, process func(string) int) error {
	var all []*member
	host := l.hostServers()
	l.mu.Lock()
	for owner := range nw.eps {
		if bx := l.boxes[owner]; bx != nil && bx.ready {
			m := &member{bx: bx, p: l.planOf(bx)}
			m.was, _ = bx.ratesOn(m.p.nets)
			all = append(all, m)
		}
	}
	nw.egress, nw.rates, nw.rec.Options, nw.rec.Before = to.egress, to.rates, to.rec.Options, to.rec.Before
	for _, m := range all {
		m.want, _ = m.bx.ratesOn(m.p.nets)
	}
	l.mu.Unlock()
	defer func() {
		for _, m := range all {
			if m.ns != nil {
				_ = m.ns.Close() // nothing was written to it
			}
		}
	}()
	if nw.br != "" {
		if err := l.egress.PutBridge(nw.br, to.egress); err != nil {
			return err
		}
	}
	for _, m := range all {
		l.mu.Lock()
		served := l.writeEntry(m.bx, host)
		l.mu.Unlock()
		if served {
			if err := l.syncNames(ctx, m.bx.req.Owner); err != nil {
				return err
			}
		}
		pid := process(m.bx.req.Owner)
		if pid == 0 {
			continue // it ended; or it is about to start, and has the rates from before until it starts again
		}
		ns, err := nsOf(pid)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		m.ns = ns
		if err := l.shape(m.p.nets, m.p.eps, m.want, m.was, m.ns); err != nil {
			return err
		}
	}
	return l.endFlows(all)
}
