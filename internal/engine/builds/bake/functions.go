package bake

import (
	"crypto/rand"
	"fmt"
	"math/big"
	"path"
	"strings"
	"time"

	"github.com/hashicorp/hcl/v2/ext/tryfunc"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/function"
	"github.com/zclconf/go-cty/cty/function/stdlib"

	"corten.dev/corten/internal/errs"
)

// functions are those that bake files may call, by buildx's names.
func functions() map[string]function.Function {
	all := map[string]function.Function{
		"absolute": stdlib.AbsoluteFunc, "add": stdlib.AddFunc, "and": stdlib.AndFunc, "byteslen": stdlib.BytesLenFunc, "bytesslice": stdlib.BytesSliceFunc, "can": tryfunc.CanFunc,
		"ceil": stdlib.CeilFunc, "chomp": stdlib.ChompFunc, "chunklist": stdlib.ChunklistFunc, "coalesce": stdlib.CoalesceFunc, "coalescelist": stdlib.CoalesceListFunc,
		"compact": stdlib.CompactFunc, "concat": stdlib.ConcatFunc, "contains": stdlib.ContainsFunc, "csvdecode": stdlib.CSVDecodeFunc, "distinct": stdlib.DistinctFunc,
		"divide": stdlib.DivideFunc, "element": stdlib.ElementFunc, "equal": stdlib.EqualFunc, "flatten": stdlib.FlattenFunc, "floor": stdlib.FloorFunc, "format": stdlib.FormatFunc,
		"formatdate": stdlib.FormatDateFunc, "formatlist": stdlib.FormatListFunc, "greaterthan": stdlib.GreaterThanFunc, "greaterthanorequalto": stdlib.GreaterThanOrEqualToFunc,
		"hasindex": stdlib.HasIndexFunc, "indent": stdlib.IndentFunc, "index": stdlib.IndexFunc, "int": stdlib.IntFunc, "join": stdlib.JoinFunc, "jsondecode": stdlib.JSONDecodeFunc,
		"jsonencode": stdlib.JSONEncodeFunc, "keys": stdlib.KeysFunc, "length": stdlib.LengthFunc, "lessthan": stdlib.LessThanFunc, "lessthanorequalto": stdlib.LessThanOrEqualToFunc,
		"log": stdlib.LogFunc, "lookup": stdlib.LookupFunc, "lower": stdlib.LowerFunc, "max": stdlib.MaxFunc, "merge": stdlib.MergeFunc, "min": stdlib.MinFunc, "modulo": stdlib.ModuloFunc,
		"multiply": stdlib.MultiplyFunc, "negate": stdlib.NegateFunc, "not": stdlib.NotFunc, "notequal": stdlib.NotEqualFunc, "or": stdlib.OrFunc, "parseint": stdlib.ParseIntFunc,
		"pow": stdlib.PowFunc, "range": stdlib.RangeFunc, "regex": stdlib.RegexFunc, "regex_replace": stdlib.RegexReplaceFunc, "regexall": stdlib.RegexAllFunc, "replace": stdlib.ReplaceFunc,
		"reverse": stdlib.ReverseFunc, "reverselist": stdlib.ReverseListFunc, "sethaselement": stdlib.SetHasElementFunc, "setintersection": stdlib.SetIntersectionFunc,
		"setproduct": stdlib.SetProductFunc, "setsubtract": stdlib.SetSubtractFunc, "setsymmetricdifference": stdlib.SetSymmetricDifferenceFunc, "setunion": stdlib.SetUnionFunc,
		"signum": stdlib.SignumFunc, "slice": stdlib.SliceFunc, "sort": stdlib.SortFunc, "split": stdlib.SplitFunc, "strlen": stdlib.StrlenFunc, "substr": stdlib.SubstrFunc,
		"subtract": stdlib.SubtractFunc, "timeadd": stdlib.TimeAddFunc, "title": stdlib.TitleFunc, "trim": stdlib.TrimFunc, "trimprefix": stdlib.TrimPrefixFunc,
		"trimspace": stdlib.TrimSpaceFunc, "trimsuffix": stdlib.TrimSuffixFunc, "try": tryfunc.TryFunc, "upper": stdlib.UpperFunc, "values": stdlib.ValuesFunc, "zipmap": stdlib.ZipmapFunc,
	}
	for name, fn := range map[string]func(string) (string, error){
		"md5": md5sum, "sha1": sha1sum, "sha256": sha256sum, "sha512": sha512sum, "base64encode": base64encode, "base64decode": base64decode, "urlencode": urlencode,
		"sanitize": func(s string) (string, error) { return sanitize(s), nil },
		"basename": func(s string) (string, error) { return path.Base(s), nil },
		"dirname":  func(s string) (string, error) { return path.Dir(s), nil },
	} {
		all[name] = onString(fn)
	}
	all["timestamp"] = constant(func() string { return time.Now().UTC().Format(time.RFC3339) })
	all["uuidv4"] = constant(uuid4)
	all["homedir"] = function.New(&function.Spec{Type: function.StaticReturnType(cty.String), Impl: func([]cty.Value, cty.Type) (cty.Value, error) {
		return cty.NilVal, errs.New(errs.NotImplemented, "homedir: bake files are read by the engine, which does not know your home directory; use a variable")
	}})
	all["indexof"] = function.New(&function.Spec{
		Params: []function.Parameter{{Name: "list", Type: cty.DynamicPseudoType}, {Name: "value", Type: cty.DynamicPseudoType}},
		Type:   function.StaticReturnType(cty.Number),
		Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) {
			if !args[0].CanIterateElements() {
				return cty.NilVal, fmt.Errorf("the first argument is no list")
			}
			for it := args[0].ElementIterator(); it.Next(); {
				i, v := it.Element()
				if eq, err := stdlib.Equal(v, args[1]); err == nil && eq.True() {
					return i, nil
				}
			}
			return cty.NilVal, fmt.Errorf("item not found")
		},
	})
	all["unixtimestampparse"] = unixTime()
	return all
}

func onString(fn func(string) (string, error)) function.Function {
	return function.New(&function.Spec{
		Params: []function.Parameter{{Name: "str", Type: cty.String}}, Type: function.StaticReturnType(cty.String),
		Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) {
			s, err := fn(args[0].AsString())
			return cty.StringVal(s), err
		},
	})
}

func constant(fn func() string) function.Function {
	return function.New(&function.Spec{Type: function.StaticReturnType(cty.String), Impl: func([]cty.Value, cty.Type) (cty.Value, error) { return cty.StringVal(fn()), nil }})
}

// sanitize makes a name that a target may have.
func sanitize(s string) string {
	return strings.Map(func(r rune) rune {
		if validName(string(r)) {
			return r
		}
		return '_'
	}, s)
}

func uuid4() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// unixTime tells the parts of a time in seconds since 1970.
func unixTime() function.Function {
	parts := cty.Object(map[string]cty.Type{
		"year": cty.Number, "year_day": cty.Number, "day": cty.Number, "month": cty.Number, "month_name": cty.String, "weekday": cty.Number, "weekday_name": cty.String,
		"hour": cty.Number, "minute": cty.Number, "second": cty.Number, "rfc3339": cty.String, "iso_year": cty.Number, "iso_week": cty.Number,
	})
	return function.New(&function.Spec{
		Params: []function.Parameter{{Name: "unix_timestamp", Type: cty.Number}}, Type: function.StaticReturnType(parts),
		Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) {
			seconds, acc := args[0].AsBigFloat().Int64()
			if acc != big.Exact {
				return cty.NilVal, fmt.Errorf("the timestamp is no whole number")
			}
			t := time.Unix(seconds, 0).UTC()
			num := func(n int) cty.Value { return cty.NumberIntVal(int64(n)) }
			year, week := t.ISOWeek()
			return cty.ObjectVal(map[string]cty.Value{
				"year": num(t.Year()), "year_day": num(t.YearDay()), "day": num(t.Day()), "month": num(int(t.Month())), "month_name": cty.StringVal(t.Month().String()),
				"weekday": num(int(t.Weekday())), "weekday_name": cty.StringVal(t.Weekday().String()), "hour": num(t.Hour()), "minute": num(t.Minute()), "second": num(t.Second()),
				"rfc3339": cty.StringVal(t.Format(time.RFC3339)), "iso_year": num(year), "iso_week": num(week),
			}), nil
		},
	})
}
