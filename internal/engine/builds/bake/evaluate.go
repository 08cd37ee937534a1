package bake

import (
	"encoding/csv"
	"fmt"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/ext/typeexpr"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/convert"
	ctyjson "github.com/zclconf/go-cty/cty/json"

	"corten.dev/corten/internal/errs"
)

// constraint reads the type of a variable.
func constraint(expr hcl.Expression) (cty.Type, error) {
	t, diags := typeexpr.TypeConstraint(expr)
	if diags.HasErrors() {
		return cty.NilType, bad(diags)
	}
	return t, nil
}

// fromEnv takes a variable's value from the environment: as text for simple types, as CSV for lists and maps, as JSON from NAME_JSON.
func (r *reader) fromEnv(name string, want cty.Type, def cty.Value) (cty.Value, error) {
	if want == cty.DynamicPseudoType && !def.IsNull() {
		want = def.Type()
	}
	if text, ok := r.req.Env[name+"_JSON"]; ok {
		if _, other := r.variables[name+"_JSON"]; !other {
			t := want
			if t == cty.DynamicPseudoType {
				var err error
				if t, err = ctyjson.ImpliedType([]byte(text)); err != nil {
					return cty.NilVal, errs.New(errs.Invalid, "variable %s: %s_JSON: %w", name, name, err)
				}
			}
			v, err := ctyjson.Unmarshal([]byte(text), t)
			if err != nil {
				return cty.NilVal, errs.New(errs.Invalid, "variable %s: %s_JSON: %w", name, name, err)
			}
			return v, nil
		}
	}
	text, ok := r.req.Env[name]
	if !ok {
		return def, nil
	}
	var v cty.Value
	switch {
	case want == cty.DynamicPseudoType || want.IsPrimitiveType():
		v = cty.StringVal(text)
	case want.IsListType() || want.IsSetType() || want.IsTupleType():
		fields, err := fieldsOf(text)
		if err != nil {
			return cty.NilVal, errs.New(errs.Invalid, "variable %s: %w", name, err)
		}
		all := make([]cty.Value, len(fields))
		for i, f := range fields {
			all[i] = cty.StringVal(f)
		}
		v = cty.TupleVal(all)
		if want.IsTupleType() && want.Length() != len(all) { // of a default: any length will do
			return v, nil
		}
	case want.IsMapType() || want.IsObjectType():
		fields, err := fieldsOf(text)
		if err != nil {
			return cty.NilVal, errs.New(errs.Invalid, "variable %s: %w", name, err)
		}
		all := map[string]cty.Value{}
		for _, f := range fields {
			k, val, ok := strings.Cut(f, "=")
			if !ok {
				return cty.NilVal, errs.New(errs.Invalid, "variable %s: %q is not key=value", name, f)
			}
			all[k] = cty.StringVal(val)
		}
		v = cty.ObjectVal(all)
	default:
		return cty.NilVal, errs.New(errs.Invalid, "variable %s: a %s cannot be taken from the environment", name, want.FriendlyName())
	}
	if want == cty.DynamicPseudoType {
		return v, nil
	}
	conv, err := convert.Convert(v, want)
	if err != nil {
		return cty.NilVal, errs.New(errs.Invalid, "variable %s: %q of the environment is no %s", name, text, want.FriendlyName())
	}
	return conv, nil
}

func fieldsOf(text string) ([]string, error) {
	if text == "" {
		return nil, nil
	}
	return csv.NewReader(strings.NewReader(text)).Read()
}

// evaluate fills the groups and targets of c. Those that compose files gave are there already, and are the older ones.
func (r *reader) evaluate(c *config) error {
	for _, name := range sortedKeys(r.variables) { // those that nobody refers to are checked too
		if _, err := r.named(name); err != nil {
			return err
		}
	}
	for _, name := range sortedKeys(r.groups) {
		g := c.groups[name]
		for _, body := range r.groups[name] {
			if err := r.group(&g, body); err != nil {
				return fmt.Errorf("group %s: %w", name, err)
			}
		}
		c.groups[name] = g
	}
	for _, name := range r.order {
		for _, body := range r.targets[name] {
			if err := r.block(c, name, body); err != nil {
				return fmt.Errorf("target %s: %w", name, err)
			}
		}
	}
	return nil
}

func (r *reader) group(g *Group, body hcl.Body) error {
	attrs, diags := body.JustAttributes()
	if diags.HasErrors() {
		return bad(diags)
	}
	for key, a := range attrs {
		v, err := r.value(a.Expr, nil)
		if err != nil {
			return err
		}
		switch key {
		case "targets":
			names, err := stringsOf(v)
			if err != nil {
				return fmt.Errorf("%s: targets: %w", a.Range, err)
			}
			g.Targets = nil // the last file says what is in a group, also in compose's "default"
			for _, n := range names {
				if !slices.Contains(g.Targets, n) {
					g.Targets = append(g.Targets, n)
				}
			}
		case "description":
			if g.Description, err = stringOf(v); err != nil {
				return fmt.Errorf("%s: description: %w", a.Range, err)
			}
		default:
			return errs.New(errs.Invalid, "%s: a group has no attribute %q", a.Range, key)
		}
	}
	return nil
}

// block evaluates one target block: one target, or with a matrix one for each combination, and a group of them.
func (r *reader) block(c *config, name string, body hcl.Body) error {
	attrs, diags := body.JustAttributes()
	if diags.HasErrors() {
		return bad(diags)
	}
	matrix, ok := attrs["matrix"]
	if !ok {
		if a, ok := attrs["name"]; ok {
			return errs.New(errs.Invalid, "%s: name is for targets with a matrix", a.Range)
		}
		return r.attributes(c, name, attrs, nil)
	}
	named, ok := attrs["name"]
	if !ok {
		return errs.New(errs.Invalid, "%s: a matrix needs the attribute name", matrix.Range)
	}
	v, err := r.value(matrix.Expr, nil)
	if err != nil {
		return err
	}
	combos, err := combinations(v)
	if err != nil {
		return fmt.Errorf("%s: matrix: %w", matrix.Range, err)
	}
	g := Group{}
	for _, locals := range combos {
		n, err := r.value(named.Expr, locals)
		if err != nil {
			return err
		}
		one, err := stringOf(n)
		if err != nil {
			return fmt.Errorf("%s: name: %w", named.Range, err)
		}
		if !validName(one) {
			return errs.New(errs.Invalid, "%s: target %q: a name has letters, digits, _ and - only", named.Range, one)
		}
		if slices.Contains(g.Targets, one) {
			return errs.New(errs.Invalid, "%s: the matrix gives several targets the name %s", named.Range, one)
		}
		g.Targets = append(g.Targets, one)
		if err := r.attributes(c, one, attrs, locals); err != nil {
			return err
		}
	}
	if _, ok := c.targets[name]; !ok {
		c.groups[name] = g
	}
	return nil
}

// combinations multiplies the lists of a matrix, the last key fastest.
func combinations(v cty.Value) ([]map[string]cty.Value, error) {
	if v.IsNull() || !v.IsKnown() || !(v.Type().IsObjectType() || v.Type().IsMapType()) {
		return nil, errs.New(errs.Invalid, "give an object of lists")
	}
	all := []map[string]cty.Value{{}}
	for it := v.ElementIterator(); it.Next(); {
		key, list := it.Element()
		if list.IsNull() || !list.CanIterateElements() || list.Type().IsObjectType() || list.Type().IsMapType() {
			return nil, errs.New(errs.Invalid, "%s is no list", key.AsString())
		}
		var next []map[string]cty.Value
		for _, have := range all {
			for each := list.ElementIterator(); each.Next(); {
				_, val := each.Element()
				combo := map[string]cty.Value{key.AsString(): val}
				for k, old := range have {
					combo[k] = old
				}
				if next = append(next, combo); len(next) > maxTargets {
					return nil, errs.New(errs.Invalid, "it has more than %d combinations", maxTargets)
				}
			}
		}
		all = next
	}
	return all, nil
}

func (r *reader) attributes(c *config, name string, attrs hcl.Attributes, locals map[string]cty.Value) error {
	t := Target{}
	for _, key := range sortedKeys(attrs) {
		a := attrs[key]
		if key == "matrix" || key == "name" {
			continue
		}
		k, ok := kinds[key]
		if !ok {
			return errs.New(errs.Invalid, "%s: a target has no attribute %q", a.Range, key)
		}
		v, err := r.value(a.Expr, locals)
		if err != nil {
			return err
		}
		if v.IsNull() {
			continue
		}
		value, err := valueOf(key, k, v)
		if err != nil {
			return fmt.Errorf("%s: %s: %w", a.Range, key, err)
		}
		t[key] = value
	}
	c.take(name, t)
	return nil
}

// take adds a target to those of its name that came before.
func (c *config) take(name string, t Target) {
	old, ok := c.targets[name]
	if !ok {
		old = Target{}
		c.order = append(c.order, name)
		c.targets[name] = old
	}
	old.merge(t)
}

// valueOf gives a value the Go type of its attribute.
func valueOf(key string, k kind, v cty.Value) (any, error) {
	switch k {
	case text:
		return stringOf(v)
	case flag:
		b, err := convert.Convert(v, cty.Bool)
		if err != nil || !b.IsKnown() {
			return nil, errs.New(errs.Invalid, "give true or false")
		}
		return b.True(), nil
	case list, growing:
		return stringsOf(v)
	case table:
		return tableOf(v)
	}
	return objectsOf(key, v)
}

func stringOf(v cty.Value) (string, error) {
	s, err := convert.Convert(v, cty.String)
	if err != nil || s.IsNull() || !s.IsKnown() {
		return "", errs.New(errs.Invalid, "give a string")
	}
	return s.AsString(), nil
}

// stringsOf leaves out what is null.
func stringsOf(v cty.Value) ([]string, error) {
	if v.IsNull() || !v.CanIterateElements() || v.Type().IsObjectType() || v.Type().IsMapType() {
		return nil, errs.New(errs.Invalid, "give a list of strings")
	}
	all := []string{}
	for it := v.ElementIterator(); it.Next(); {
		_, one := it.Element()
		if one.IsNull() {
			continue
		}
		s, err := stringOf(one)
		if err != nil {
			return nil, errs.New(errs.Invalid, "give a list of strings")
		}
		all = append(all, s)
	}
	return all, nil
}

func tableOf(v cty.Value) (map[string]string, error) {
	if !(v.Type().IsObjectType() || v.Type().IsMapType()) {
		return nil, errs.New(errs.Invalid, "give an object of strings")
	}
	all := map[string]string{}
	for it := v.ElementIterator(); it.Next(); {
		k, one := it.Element()
		if one.IsNull() {
			continue
		}
		s, err := stringOf(one)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", k.AsString(), err)
		}
		all[k.AsString()] = s
	}
	return all, nil
}

// objectsOf reads entries as objects or in the form of flags.
func objectsOf(key string, v cty.Value) ([]object, error) {
	if !v.CanIterateElements() || v.Type().IsObjectType() || v.Type().IsMapType() {
		return nil, errs.New(errs.Invalid, "give a list")
	}
	all := []object{}
	for it := v.ElementIterator(); it.Next(); {
		_, one := it.Element()
		if one.IsNull() {
			continue
		}
		if !one.Type().IsObjectType() && !one.Type().IsMapType() {
			s, err := stringOf(one)
			if err != nil {
				return nil, err
			}
			if s == "" {
				continue
			}
			o, err := parseObject(key, s)
			if err != nil {
				return nil, err
			}
			all = append(all, o)
			continue
		}
		o := object{}
		for each := one.ElementIterator(); each.Next(); {
			k, val := each.Element()
			if val.IsNull() {
				continue
			}
			if s, err := stringOf(val); err == nil {
				o[k.AsString()] = s
			} else if l, err := stringsOf(val); err == nil {
				o[k.AsString()] = l
			} else {
				return nil, errs.New(errs.Invalid, "%s is neither a string nor a list of strings", k.AsString())
			}
		}
		all = append(all, o)
	}
	return all, nil
}
