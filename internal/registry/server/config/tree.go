package config

import (
	"bytes"
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"

	"corten.dev/corten/internal/errs"
)

// node is one value of the file with the line it starts on, so that each complaint can name the place.
type node struct {
	line int
	keys []field // of an object
	list []node  // of an array
	kind byte    // '{', '[', or 'v' for everything else
	raw  json.RawMessage
}

type field struct {
	name string
	line int
	node node
}

// maxDepth bounds the nesting; no key of ours is deeper than five.
const maxDepth = 32

// reader turns text into nodes.
type reader struct {
	file string
	text []byte
	dec  *json.Decoder
}

func (r *reader) line(offset int64) int {
	return 1 + bytes.Count(r.text[:min(max(offset, 0), int64(len(r.text)))], []byte("\n"))
}

func (r *reader) failure(line int, format string, args ...any) error {
	return errs.New(errs.Invalid, "%s line %d: %w", r.file, line, fmt.Errorf(format, args...))
}

// parse reads the whole file: one object and nothing behind it. An empty file sets nothing, as that of the engine: people point at /dev/null to do without one.
func parse(file string, text []byte) (node, error) {
	if len(bytes.TrimSpace(text)) == 0 {
		return node{line: 1, kind: '{'}, nil
	}
	r := &reader{file: file, text: text, dec: json.NewDecoder(bytes.NewReader(text))}
	r.dec.UseNumber()
	root, err := r.value(0)
	if err != nil {
		return node{}, err
	}
	if root.kind != '{' {
		return node{}, r.failure(root.line, "expected an object with the settings")
	}
	if _, err := r.dec.Token(); !errors.Is(err, io.EOF) {
		return node{}, r.failure(r.line(r.dec.InputOffset()), "there is something behind the settings' closing brace")
	}
	return root, nil
}

func (r *reader) token() (json.Token, error) {
	tok, err := r.dec.Token()
	if err == nil {
		return tok, nil
	}
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) {
		return nil, r.failure(r.line(syntax.Offset), "%w", err)
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, r.failure(r.line(int64(len(r.text))), "the file ends in the middle")
	}
	return nil, r.failure(r.line(r.dec.InputOffset()), "%w", err)
}

func (r *reader) value(depth int) (node, error) {
	tok, err := r.token()
	if err != nil {
		return node{}, err
	}
	n := node{line: r.line(r.dec.InputOffset()), kind: 'v'}
	if depth > maxDepth {
		return n, r.failure(n.line, "nested deeper than any setting")
	}
	switch tok {
	case json.Delim('{'):
		n.kind = '{'
		return n, r.object(&n, depth)
	case json.Delim('['):
		n.kind = '['
		for r.dec.More() {
			item, err := r.value(depth + 1)
			if err != nil {
				return n, err
			}
			n.list = append(n.list, item)
		}
		_, err := r.token()
		return n, err
	}
	n.raw, err = json.Marshal(tok)
	return n, err
}

func (r *reader) object(n *node, depth int) error {
	for r.dec.More() {
		tok, err := r.token()
		if err != nil {
			return err
		}
		name, _ := tok.(string)
		line := r.line(r.dec.InputOffset())
		if slices.ContainsFunc(n.keys, func(f field) bool { return f.name == name }) {
			return r.failure(line, "%q is given twice", name)
		}
		value, err := r.value(depth + 1)
		if err != nil {
			return err
		}
		n.keys = append(n.keys, field{name, line, value})
	}
	_, err := r.token()
	return err
}

// filler puts nodes into a struct, strictly, and remembers on which line each path stands.
type filler struct {
	file  string
	lines map[string]int
}

func (f *filler) failure(n node, path, format string, args ...any) error {
	return errs.New(errs.Invalid, "%s line %d: %s: %w", f.file, n.line, path, fmt.Errorf(format, args...))
}

func (f *filler) fill(n node, into reflect.Value, path string) error {
	f.lines[path] = n.line
	if into.Kind() == reflect.Pointer {
		if into.IsNil() {
			into.Set(reflect.New(into.Type().Elem()))
		}
		return f.fill(n, into.Elem(), path)
	}
	if text, ok := into.Addr().Interface().(encoding.TextUnmarshaler); ok {
		var s string
		if n.kind != 'v' || json.Unmarshal(n.raw, &s) != nil {
			if s = string(n.raw); n.kind != 'v' || strings.ContainsAny(s, "tfn") { // a plain number is good for a size
				return f.failure(n, path, "expected a text")
			}
		}
		if err := text.UnmarshalText([]byte(s)); err != nil {
			return f.failure(n, path, "%w", err)
		}
		return nil
	}
	switch into.Kind() {
	case reflect.Struct:
		return f.object(n, into, path)
	case reflect.Slice:
		if n.kind != '[' {
			return f.failure(n, path, "expected a list [ … ]")
		}
		into.Set(reflect.MakeSlice(into.Type(), len(n.list), len(n.list)))
		for i, item := range n.list {
			if err := f.fill(item, into.Index(i), fmt.Sprintf("%s[%d]", path, i)); err != nil {
				return err
			}
		}
		return nil
	case reflect.Map:
		if n.kind != '{' {
			return f.failure(n, path, "expected an object { … }")
		}
		into.Set(reflect.MakeMap(into.Type()))
		for _, k := range n.keys {
			v := reflect.New(into.Type().Elem()).Elem()
			if err := f.fill(k.node, v, join(path, k.name)); err != nil {
				return err
			}
			into.SetMapIndex(reflect.ValueOf(k.name), v)
		}
		return nil
	}
	if n.kind != 'v' || string(n.raw) == "null" || json.Unmarshal(n.raw, into.Addr().Interface()) != nil {
		return f.failure(n, path, "expected %s", kindWords[into.Kind()])
	}
	return nil
}

var kindWords = map[reflect.Kind]string{
	reflect.String: "a text", reflect.Bool: "true or false", reflect.Int: "a whole number", reflect.Int64: "a whole number", reflect.Float64: "a number",
}

func (f *filler) object(n node, into reflect.Value, path string) error {
	if n.kind != '{' {
		return f.failure(n, path, "expected an object { … }")
	}
	for _, k := range n.keys {
		index := -1
		var known []string
		for i := range into.NumField() {
			name := into.Type().Field(i).Tag.Get("json")
			if name == "" {
				continue // not a key
			}
			if name == k.name {
				index = i
			}
			known = append(known, name)
		}
		if index < 0 {
			return errs.New(errs.Invalid, "%s line %d: unknown key %q (known here: %s)", f.file, k.line, join(path, k.name), strings.Join(known, ", "))
		}
		if err := f.fill(k.node, into.Field(index), join(path, k.name)); err != nil {
			return err
		}
	}
	return nil
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}
