// Package show prints what commands list: tables, Go templates and JSON, as docker does.
//
// It owns the template functions, the column rules and the words for ages and sizes. It promises docker's output byte
// for byte, because people parse it.
package show

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"reflect"
	"strings"
	"text/tabwriter"
	"text/template"

	"corten.dev/corten/internal/errs"
)

// Headers are the column titles by field name.
type Headers map[string]string

// Label is the title of a {{.Label "name"}} column: the last part of the label's name.
func (h Headers) Label(name string) string {
	parts := strings.Split(name, ".")
	r := strings.NewReplacer("-", " ", "_", " ")
	return r.Replace(parts[len(parts)-1])
}

// Funcs are docker's template functions.
func Funcs() template.FuncMap {
	return template.FuncMap{
		"json":     toJSON,
		"split":    strings.Split,
		"join":     strings.Join,
		"title":    title,
		"lower":    strings.ToLower,
		"upper":    strings.ToUpper,
		"pad":      pad,
		"truncate": truncate,
	}
}

// headerFuncs are the same functions for the line of titles, which they leave as it is: {{lower .State}} stands below STATE.
func headerFuncs() template.FuncMap {
	same := func(title string, _ ...any) string { return title }
	return template.FuncMap{"json": same, "split": same, "join": same, "title": same, "lower": same, "upper": same, "truncate": same}
}

// toJSON is JSON without HTML escapes and without the final line end.
func toJSON(v any) (string, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return "", err
	}
	return strings.TrimSpace(buf.String()), nil
}

// title writes the first letter of each word large.
func title(s string) string {
	prev := ' '
	return strings.Map(func(r rune) rune {
		start := prev == ' ' || prev == '\t' || prev == '\n'
		prev = r
		if start {
			return []rune(strings.ToUpper(string(r)))[0]
		}
		return r
	}, s)
}

func pad(s string, before, after int) string {
	if s == "" {
		return s
	}
	return strings.Repeat(" ", max(before, 0)) + s + strings.Repeat(" ", max(after, 0))
}

func truncate(s string, n int) string {
	if n < 0 || n > len(s) {
		return s
	}
	return s[:n]
}

// Parse parses a --format template.
func Parse(format string) (*template.Template, error) {
	t, err := template.New("").Funcs(Funcs()).Parse(format)
	if err != nil {
		return nil, errs.New(errs.Invalid, "%w", err)
	}
	return t, nil
}

// List is a listing to print. A row's exported methods without arguments are its fields; its MarshalJSON
// is MarshalRow.
type List struct {
	Format  string // as given by the user; "" means Default
	Default string // a "table …" template
	Quiet   string // template of -q; used when the format is a table or empty and IsQuiet
	Raw     string // template of --format raw, where docker has one; with -q only its line of the ID, QuietRaw
	// QuietRaw is what -q leaves of Raw.
	QuietRaw string
	IsQuiet  bool
	Headers  Headers
	// Cells, if set, gives what Default shows of a row, so that the usual table of a thousand rows needs no template: that would be most of its time.
	Cells func(row any) []string
}

// Print writes the rows.
func (l List) Print(w io.Writer, rows []any) error {
	format := l.Format
	if format == "" || format == "table" {
		format = l.Default
		if l.IsQuiet {
			format = l.Quiet
		}
	}
	if format == "raw" && l.Raw != "" {
		format = l.Raw
		if l.IsQuiet {
			format = l.QuietRaw
		}
	}
	body, table := strings.CutPrefix(format, "table")
	body = strings.NewReplacer(`\t`, "\t", `\n`, "\n").Replace(strings.Trim(body, " "))
	switch {
	case format == "json":
		body = "{{json .}}"
	case !table:
		body = strings.NewReplacer(`\t`, "\t", `\n`, "\n").Replace(format)
	}
	t, err := Parse(body)
	if err != nil {
		return errs.New(errs.Invalid, "failed to parse template: %w", err)
	}
	var buf bytes.Buffer
	if table {
		head, err := t.Clone()
		if err != nil {
			return err
		}
		if err := head.Funcs(headerFuncs()).Execute(&buf, l.Headers); err != nil {
			return errs.New(errs.Invalid, "failed to execute template: %w", err)
		}
		buf.WriteByte('\n')
	}
	plain := l.Cells != nil && format == l.Default
	for _, row := range rows {
		if plain {
			for i, cell := range l.Cells(row) {
				if i > 0 {
					buf.WriteByte('\t')
				}
				buf.WriteString(cell)
			}
		} else if err := t.Execute(&buf, row); err != nil {
			return errs.New(errs.Invalid, "failed to execute template: %w", err)
		}
		buf.WriteByte('\n')
	}
	if !table {
		_, err := w.Write(buf.Bytes())
		return err
	}
	out := bufio.NewWriterSize(w, 32<<10) // a tabwriter writes cell by cell
	tw := tabwriter.NewWriter(out, 10, 1, 3, ' ', 0)
	if _, err := tw.Write(buf.Bytes()); err != nil {
		return err
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	return out.Flush()
}

// MarshalRow writes a row's fields as a JSON object, in the order of their names.
func MarshalRow(row any) ([]byte, error) {
	v := reflect.ValueOf(row)
	t := v.Type()
	m := make(map[string]any, t.NumMethod())
	for i := range t.NumMethod() {
		method := t.Method(i)
		if method.Name == "MarshalJSON" || method.Type.NumIn() != 1 || method.Type.NumOut() != 1 {
			continue
		}
		m[method.Name] = v.Method(i).Call(nil)[0].Interface()
	}
	return json.Marshal(m)
}

// Text executes a template on one value and ends the line.
func Text(w io.Writer, format string, v any) error {
	if format == "json" {
		format = "{{json .}}"
	}
	t, err := Parse(format)
	if err != nil {
		return errs.New(errs.Invalid, "template parsing error: %w", err)
	}
	var buf bytes.Buffer
	if err := t.Execute(&buf, v); err != nil {
		return errs.New(errs.Invalid, "template parsing error: %w", err)
	}
	buf.WriteByte('\n')
	_, err = w.Write(buf.Bytes())
	return err
}

// Tabs aligns lines whose cells are separated by tabs.
func Tabs(w io.Writer, minWidth, padding int, lines []string) error {
	tw := tabwriter.NewWriter(w, minWidth, 1, padding, ' ', 0)
	for _, l := range lines {
		if _, err := fmt.Fprintln(tw, l); err != nil {
			return err
		}
	}
	return tw.Flush()
}
