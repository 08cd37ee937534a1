package buildprogress

import (
	"fmt"
	"io"
	"strings"
)

// Source is a text, a Dockerfile say.
type Source struct {
	Filename string `json:"filename"`
	Language string `json:"language"`
	Data     []byte `json:"data"`
}

// Range is a part of a text; lines count from 1.
type Range struct {
	Start Position `json:"start"`
	End   Position `json:"end"`
}

// Position is a place in a text.
type Position struct {
	Line      int `json:"line"`
	Character int `json:"character"`
}

// Lines prints the lines that ranges mean, marked, with one or two around them.
func (s *Source) Lines(w io.Writer, ranges []Range) error {
	first, last := 0, 0
	for _, r := range ranges {
		if first == 0 || r.Start.Line < first {
			first = r.Start.Line
		}
		last = max(last, r.Start.Line, r.End.Line)
	}
	lines := strings.Split(string(s.Data), "\n")
	if first < 1 || first > len(lines) {
		return nil
	}
	around := 1
	if first == last {
		around = 2
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s:%d\n--------------------\n", s.Filename, first)
	for n := max(1, first-around); n <= min(len(lines), last+around); n++ {
		mark := "   "
		if meant(ranges, n) {
			mark = ">>>"
		}
		fmt.Fprintf(&b, " %3d | %s %s\n", n, mark, strings.TrimSuffix(lines[n-1], "\r"))
	}
	b.WriteString("--------------------\n")
	_, err := io.WriteString(w, b.String())
	return err
}

func meant(ranges []Range, line int) bool {
	for _, r := range ranges {
		if r.Start.Line <= line && line <= max(r.Start.Line, r.End.Line) {
			return true
		}
	}
	return false
}

// printWarnings lists what the linter found.
func printWarnings(w io.Writer, list []Warning, details, colour bool) error {
	if len(list) == 0 {
		return nil
	}
	head := "1 warning found"
	if len(list) > 1 {
		head = fmt.Sprintf("%d warnings found", len(list))
	}
	if !details {
		head += " (use corten --debug to expand)"
	}
	head += ":\n"
	if colour {
		head = yellow + head + plain
	}
	var b strings.Builder
	b.WriteString("\n " + head)
	for _, one := range list {
		fmt.Fprintf(&b, " - %s\n", one.Short)
		if !details {
			continue
		}
		for _, d := range one.Detail {
			fmt.Fprintf(&b, "%s\n", d)
		}
		if one.URL != "" {
			fmt.Fprintf(&b, "More info: %s\n", one.URL)
		}
		if one.Source != nil {
			if err := one.Source.Lines(&b, one.Ranges); err != nil {
				return err
			}
		}
		b.WriteByte('\n')
	}
	_, err := io.WriteString(w, b.String())
	return err
}
