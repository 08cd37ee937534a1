package depot

import (
	"bytes"
	"context"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/snapshot"
)

// The holds lie in one file, a line for each change, in their order; the last line of a name counts:
//
//   - <chain> <name, quoted> <crc32 of what is before, in hex>
//   - <name, quoted> <crc32>
//
// A line is written in one go and not flushed: Flush does that for all. A line that is damaged, by a crash of the host or a full disk, is left out: a lost hold lets go of layers
// that its owner finds missing, a lost release is made again by the owner at its start. The file is written anew at start and when most of it is history.
const (
	holdsFile    = "holds"
	holdsNewFile = holdsFile + ".new"
	// holdsHistory is how many lines more than holds the file may have.
	holdsHistory = 4096
)

// pledges is the file.
type pledges struct {
	path  string
	mu    sync.Mutex // orders changes in memory and in the file: held over one write to the page cache by design, and taken before Depot.mu
	file  *os.File   // nil: not open yet, or closed
	lines int
	torn  bool // the last write was cut off
}

func (p *pledges) close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.file == nil {
		return nil
	}
	f := p.file
	p.file = nil
	return f.Close()
}

func holdLine(name string, chain snapshot.ChainID) []byte {
	text := "- " + strconv.Quote(name)
	if chain != "" {
		text = "+ " + string(chain) + " " + strconv.Quote(name)
	}
	return fmt.Appendf(nil, "%s %08x\n", text, crc32.ChecksumIEEE([]byte(text)))
}

// parseHold reads a line; the chain is empty for a release.
func parseHold(line string) (name string, chain snapshot.ChainID, ok bool) {
	cut := strings.LastIndexByte(line, ' ')
	if cut < 2 {
		return "", "", false
	}
	text, sum := line[:cut], line[cut+1:]
	if want, err := strconv.ParseUint(sum, 16, 32); err != nil || len(sum) != 8 || uint32(want) != crc32.ChecksumIEEE([]byte(text)) {
		return "", "", false
	}
	kind, rest := text[:2], text[2:]
	if kind == "+ " {
		first, quoted, found := strings.Cut(rest, " ")
		if chain, rest = digest.Digest(first), quoted; !found || chain.Validate() != nil {
			return "", "", false
		}
	}
	name, err := strconv.Unquote(rest)
	return name, chain, err == nil && name != "" && (kind == "+ " || kind == "- ")
}

func parseHolds(data []byte) (holds map[string]snapshot.ChainID, damaged int) {
	holds = map[string]snapshot.ChainID{}
	for line := range bytes.Lines(data) {
		name, chain, ok := parseHold(strings.TrimSuffix(string(line), "\n"))
		switch {
		case !ok:
			damaged++
		case chain == "":
			delete(holds, name)
		default:
			holds[name] = chain
		}
	}
	return holds, damaged
}

func (d *Depot) loadHolds() error {
	d.pledges.path = filepath.Join(d.root, holdsFile)
	data, err := os.ReadFile(d.pledges.path)
	if err != nil && !os.IsNotExist(err) {
		return err
	}
	holds, damaged := parseHolds(data)
	if damaged > 0 {
		d.log.Warn("lines of the holds cannot be read", "lines", damaged)
	}
	for name, chain := range holds {
		l := d.layers[chain]
		if l == nil {
			d.log.Info("a held layer is gone, and its hold with it", "hold", name, "chain", chain)
			continue
		}
		l.uses++
		l.kept++
		d.holds[name] = l
	}
	p := &d.pledges
	p.lines, p.torn = bytes.Count(data, []byte{'\n'}), len(data) > 0 && data[len(data)-1] != '\n'
	if p.lines == len(d.holds) && !p.torn {
		return nil
	}
	if err := d.rewriteHolds(); err != nil {
		d.log.Warn("the holds stay as they are, with their history", "error", err) // a full disk is no reason not to start
	}
	return nil
}

// rewriteHolds puts a new file in place that has the holds of now and no history. It needs the pledges' lock, or to be alone.
func (d *Depot) rewriteHolds() error {
	p := &d.pledges
	d.mu.Lock()
	lines := make([][]byte, 0, len(d.holds))
	for name, l := range d.holds {
		lines = append(lines, holdLine(name, l.Chain))
	}
	for name, chain := range d.coming {
		lines = append(lines, holdLine(name, chain))
	}
	d.mu.Unlock()
	aside := filepath.Join(d.root, holdsNewFile)
	f, err := os.Create(aside)
	if err != nil {
		return err
	}
	_, err = f.Write(bytes.Join(lines, nil))
	if err == nil && len(lines) > 0 {
		err = f.Sync() // the old one may be durable, so the new one must be before it takes its place
	}
	if err = also(err, f.Close()); err == nil {
		err = os.Rename(aside, p.path)
	}
	if err != nil {
		return also(err, os.Remove(aside))
	}
	old := p.file
	p.file, p.lines, p.torn = nil, len(lines), false
	if old != nil {
		return old.Close()
	}
	return nil
}

// compactHolds writes the file anew when most of it is history.
func (d *Depot) compactHolds() error {
	p := &d.pledges
	p.mu.Lock()
	defer p.mu.Unlock()
	d.mu.Lock()
	held := len(d.holds)
	d.mu.Unlock()
	if p.lines < 2*held+holdsHistory {
		return nil
	}
	d.rounds.touch()
	return d.rewriteHolds()
}

// note appends a line. It needs the pledges' lock.
func (p *pledges) note(line []byte) error {
	if p.file == nil {
		f, err := os.OpenFile(p.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
		if err != nil {
			return err
		}
		p.file = f
	}
	if p.torn {
		line = append([]byte{'\n'}, line...)
	}
	n, err := p.file.Write(line)
	p.torn = err != nil && n > 0 || p.torn && n == 0
	if err == nil {
		p.lines++
	}
	return err
}

// foretell notes the hold on a layer that is about to be there. putHeld or recant follows.
func (d *Depot) foretell(name string, chain snapshot.ChainID) error {
	p := &d.pledges
	p.mu.Lock()
	defer p.mu.Unlock()
	d.rounds.touch()
	if err := p.note(holdLine(name, chain)); err != nil {
		return fmt.Errorf("hold %s: %w", name, err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.coming[name] = chain
	return nil
}

// recant notes what is held by that name after all.
func (d *Depot) recant(name string) error {
	p := &d.pledges
	p.mu.Lock()
	defer p.mu.Unlock()
	var chain snapshot.ChainID
	d.mu.Lock()
	delete(d.coming, name)
	if l := d.holds[name]; l != nil {
		chain = l.Chain
	}
	d.mu.Unlock()
	return p.note(holdLine(name, chain))
}

// putHeld makes a layer known together with its hold, if it has one. It needs mu.
func (d *Depot) putHeld(l *layer, name string) {
	d.put(l)
	if p := d.layers[l.Parent]; p != nil {
		p.kept++ // it was in use already, by the call or the tree that l was made of
	}
	if name == "" {
		return
	}
	delete(d.coming, name)
	d.setHold(name, l)
}

// setHold makes a name hold a layer, or none, instead of what it held. It needs mu.
func (d *Depot) setHold(name string, l *layer) {
	if old := d.holds[name]; old != nil {
		old.uses--
		old.kept--
		delete(d.holds, name)
	}
	if l != nil {
		l.uses++
		l.kept++
		d.holds[name] = l
	}
}

// Hold is snapshot.Store's Hold.
func (d *Depot) Hold(_ context.Context, name string, chain snapshot.ChainID) error {
	if name == "" {
		return errs.New(errs.Invalid, "a hold needs a name")
	}
	if chain == "" {
		return nil
	}
	p := &d.pledges
	p.mu.Lock()
	defer p.mu.Unlock()
	d.mu.Lock()
	l, old := d.layers[chain], d.holds[name]
	if l == nil || l == old {
		d.mu.Unlock()
		if l == nil {
			return fmt.Errorf("hold %s: %w", name, noLayer(chain))
		}
		return nil
	}
	l.uses++ // at once, so that it stays while the line is written
	d.mu.Unlock()
	d.rounds.touch()
	err := p.note(holdLine(name, chain))
	d.mu.Lock()
	defer d.mu.Unlock()
	if err != nil {
		l.uses--
		return fmt.Errorf("hold %s: %w", name, err)
	}
	l.uses-- // setHold counts it
	d.setHold(name, l)
	return nil
}

// Release is snapshot.Store's Release. It also works on a full disk: what cannot be noted then is let go all the same, and is there again after a restart.
func (d *Depot) Release(_ context.Context, name string) error {
	p := &d.pledges
	p.mu.Lock()
	defer p.mu.Unlock()
	d.mu.Lock()
	l := d.holds[name]
	d.setHold(name, nil)
	d.mu.Unlock()
	if l == nil {
		return nil
	}
	d.rounds.touch()
	if err := p.note(holdLine(name, "")); err != nil {
		d.log.Warn("the end of a hold cannot be noted, it will be there again after a restart", "hold", name, "error", err)
	}
	return nil
}

// Holds is snapshot.Store's Holds.
func (d *Depot) Holds(ctx context.Context, fn func(name string, chain snapshot.ChainID) error) error {
	d.mu.Lock()
	names := make([]string, 0, len(d.holds))
	chains := make(map[string]snapshot.ChainID, len(d.holds))
	for name, l := range d.holds {
		names = append(names, name)
		chains[name] = l.Chain
	}
	d.mu.Unlock()
	sort.Strings(names)
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := fn(name, chains[name]); err != nil {
			return err
		}
	}
	return nil
}
