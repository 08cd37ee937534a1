package pick

import (
	"strings"

	"github.com/moby/patternmatcher"

	"corten.dev/corten/internal/errs"
)

// filter is a list of patterns with exceptions, as in .dockerignore. It may be used by several goroutines.
type filter struct {
	patterns   []pattern
	exceptions bool
	// plain: those that take (of an include list), or those that are exceptions (of an exclude list), have no wildcard but at their end: what they can be in is to be told from the path.
	plainTakes, plainExceptions bool
}

type pattern struct {
	text      string // without the exclamation mark
	exception bool
	literal   bool
	matcher   *patternmatcher.PatternMatcher
	none      patternmatcher.MatchInfo // "no directory above matched"
}

const special = "*[]?^\\"

func newFilter(what string, patterns []string) (*filter, error) {
	f := &filter{plainTakes: true, plainExceptions: true}
	all, err := patternmatcher.New(patterns)
	if err != nil {
		return nil, errs.New(errs.Invalid, "%s patterns %q: %w", what, patterns, err)
	}
	for _, p := range all.Patterns() {
		one := pattern{text: p.String(), exception: p.Exclusion()}
		one.literal = !strings.ContainsAny(one.text, special)
		if one.matcher, err = patternmatcher.New([]string{one.text}); err != nil {
			return nil, errs.New(errs.Invalid, "%s pattern %q: %w", what, one.text, err)
		}
		// A lone exception never matches: that is how to come by the word for it.
		not, err := patternmatcher.New([]string{"!" + one.text})
		if err != nil {
			return nil, errs.New(errs.Invalid, "%s pattern %q: %w", what, one.text, err)
		}
		if _, one.none, err = not.MatchesUsingParentResults("x", patternmatcher.MatchInfo{}); err != nil {
			return nil, errs.New(errs.Invalid, "%s pattern %q: %w", what, one.text, err)
		}
		// The first use compiles it; afterwards it is only read.
		if _, err := one.match("x"); err != nil {
			return nil, errs.New(errs.Invalid, "%s pattern %q: %w", what, one.text, err)
		}
		plain := !strings.ContainsAny(one.stem(), special)
		if one.exception {
			f.exceptions = true
			f.plainExceptions = f.plainExceptions && plain
		} else {
			f.plainTakes = f.plainTakes && plain
		}
		f.patterns = append(f.patterns, one)
	}
	if len(f.patterns) == 0 {
		return nil, nil
	}
	return f, nil
}

func (p *pattern) match(path string) (bool, error) {
	if p.literal {
		return path == p.text, nil
	}
	ok, _, err := p.matcher.MatchesUsingParentResults(path, p.none)
	return ok, err
}

// stem is the pattern without a wildcard for whole names at its end.
func (p *pattern) stem() string {
	return strings.TrimSuffix(strings.TrimSuffix(p.text, "/**"), "/*")
}

// eval tells whether path matches, when above says which patterns a directory above it matched (nil: none). For a directory it gives the same for what is in it.
func (f *filter) eval(path string, above []bool, isDir bool) (matched bool, below []bool) {
	if isDir {
		below = make([]bool, len(f.patterns))
	}
	for i := range f.patterns {
		p := &f.patterns[i]
		match := above != nil && above[i]
		if !match {
			if p.exception != matched {
				continue
			}
			match, _ = p.match(path) // errors are those of the pattern, and newFilter has seen it work
		}
		if isDir {
			below[i] = match
		}
		if match {
			matched = !p.exception
		}
	}
	return matched, below
}

// within tells whether one of the patterns may match something in the directory path.
func (f *filter) within(path string, exceptions bool) bool {
	for i := range f.patterns {
		p := &f.patterns[i]
		if p.exception == exceptions && strings.HasPrefix(p.stem()+"/", path+"/") {
			return true
		}
	}
	return false
}

// state is an include list and an exclude list at a directory.
type state struct {
	include, exclude   *filter
	included, excluded []bool
}

// step goes to path, one level below. in: it is chosen; deeper: something in it may be.
func (s state) step(path string, isDir bool) (in, deeper bool, next state) {
	next = state{include: s.include, exclude: s.exclude}
	in, deeper = true, true
	if s.include != nil {
		in, next.included = s.include.eval(path, s.included, isDir)
		if !in && isDir && s.include.plainTakes && !s.include.within(path, false) {
			deeper = false
		}
	}
	if s.exclude != nil {
		var out bool
		out, next.excluded = s.exclude.eval(path, s.excluded, isDir)
		if out {
			in = false
			if !s.exclude.exceptions || s.exclude.plainExceptions && !s.exclude.within(path, true) {
				deeper = false
			}
		}
	}
	return in, deeper && isDir, next
}

func (s *state) open() bool { return s.include == nil && s.exclude == nil }

type pair struct{ include, exclude *filter }

func newPair(sel Selection) (*pair, error) {
	include, err := newFilter("include", sel.Include)
	if err != nil {
		return nil, err
	}
	exclude, err := newFilter("exclude", sel.Exclude)
	return &pair{include, exclude}, err
}

// Cursor is what the patterns say at one place of a tree. It is a value.
type Cursor struct {
	view, sel         state
	viewPath, selPath string
	// Included: the thing itself is chosen. A directory that is not may still hold something that is; then it belongs to it.
	Included bool
}

// Step goes to a name in the directory. deeper: look into it, there may be something chosen.
func (c *Cursor) Step(name string, isDir bool) (next Cursor, deeper bool) {
	next.Included, deeper = true, isDir
	if c.view.open() && c.sel.open() {
		return next, deeper
	}
	next.viewPath, next.selPath = c.viewPath, c.selPath
	if !c.view.open() {
		next.viewPath = join(c.viewPath, name)
		in, more, view := c.view.step(next.viewPath, isDir)
		next.view, next.Included, deeper = view, in, deeper && more
	}
	if !c.sel.open() {
		next.selPath = join(c.selPath, name)
		in, more, sel := c.sel.step(next.selPath, isDir)
		next.sel, next.Included, deeper = sel, next.Included && in, deeper && more
	}
	return next, deeper
}
