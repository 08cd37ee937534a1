package engineapi

import (
	"encoding"
	"encoding/json"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// Sparse writes v as JSON without the fields that have their zero value, which every decoder of Go gives them by itself. It is for large bodies of which little is used: the request of
// a run has 150 fields. encoding/json looks at all of them and their types before it writes the first one, which costs a process that does it once 0.4 ms.
func Sparse(v any) (json.RawMessage, error) {
	return appendSparse(nil, reflect.ValueOf(v))
}

var (
	jsonMarshaler = reflect.TypeFor[json.Marshaler]()
	textMarshaler = reflect.TypeFor[encoding.TextMarshaler]()
)

func appendSparse(b []byte, v reflect.Value) ([]byte, error) {
	if !v.IsValid() {
		return append(b, "null"...), nil
	}
	if t := v.Type(); t.Implements(jsonMarshaler) || t.Implements(textMarshaler) {
		return appendWhole(b, v)
	}
	switch v.Kind() {
	case reflect.Pointer:
		return appendSparse(b, v.Elem())
	case reflect.Struct:
		return appendStruct(b, v)
	case reflect.Bool:
		return strconv.AppendBool(b, v.Bool()), nil
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return strconv.AppendInt(b, v.Int(), 10), nil
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return strconv.AppendUint(b, v.Uint(), 10), nil
	case reflect.Slice:
		if v.Type().Elem().Kind() != reflect.Uint8 && !v.IsNil() {
			return appendList(b, v)
		}
	case reflect.Array:
		return appendList(b, v)
	case reflect.Map:
		if v.Type().Key().Kind() == reflect.String && !v.Type().Key().Implements(textMarshaler) && !v.IsNil() {
			return appendMap(b, v)
		}
	}
	return appendWhole(b, v)
}

// appendWhole is encoding/json's own way.
func appendWhole(b []byte, v reflect.Value) ([]byte, error) {
	data, err := json.Marshal(v.Interface())
	return append(b, data...), err
}

func appendList(b []byte, v reflect.Value) (_ []byte, err error) {
	b = append(b, '[')
	for i := range v.Len() {
		if i > 0 {
			b = append(b, ',')
		}
		if b, err = appendSparse(b, v.Index(i)); err != nil {
			return nil, err
		}
	}
	return append(b, ']'), nil
}

func appendMap(b []byte, v reflect.Value) (_ []byte, err error) {
	keys := v.MapKeys()
	slices.SortFunc(keys, func(x, y reflect.Value) int { return strings.Compare(x.String(), y.String()) })
	b = append(b, '{')
	for i, key := range keys {
		if i > 0 {
			b = append(b, ',')
		}
		if b, err = appendWhole(b, reflect.ValueOf(key.String())); err != nil {
			return nil, err
		}
		if b, err = appendSparse(append(b, ':'), v.MapIndex(key)); err != nil {
			return nil, err
		}
	}
	return append(b, '}'), nil
}

func appendStruct(b []byte, v reflect.Value) ([]byte, error) {
	b = append(b, '{')
	begin := len(b)
	b, err := appendFields(b, begin, v, map[string]bool{})
	return append(b, '}'), err
}

// appendFields writes a struct's fields; those of embedded structs come after its own, which hide them.
func appendFields(b []byte, begin int, v reflect.Value, have map[string]bool) (_ []byte, err error) {
	t := v.Type()
	var embedded []reflect.Value
	for i := range t.NumField() {
		f := t.Field(i)
		name, opts, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case f.Anonymous && name == "":
			inner := v.Field(i)
			if inner.Kind() == reflect.Pointer {
				inner = inner.Elem()
			}
			if inner.IsValid() {
				embedded = append(embedded, inner)
			}
			continue
		case !f.IsExported() || name == "-":
			continue
		case name == "":
			name = f.Name
		}
		if have[name] {
			continue
		}
		have[name] = true
		field := v.Field(i)
		if field.IsZero() || (field.Kind() == reflect.Slice || field.Kind() == reflect.Map) && field.Len() == 0 && strings.Contains(opts, "omitempty") {
			continue
		}
		if len(b) > begin {
			b = append(b, ',')
		}
		b = append(append(append(b, '"'), name...), '"', ':')
		if b, err = appendSparse(b, field); err != nil {
			return nil, err
		}
	}
	for _, inner := range embedded {
		if b, err = appendFields(b, begin, inner, have); err != nil {
			return nil, err
		}
	}
	return b, nil
}
