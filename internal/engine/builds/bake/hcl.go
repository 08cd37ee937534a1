package bake

import (
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	hcljson "github.com/hashicorp/hcl/v2/json"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/convert"
	"github.com/zclconf/go-cty/cty/function"

	"corten.dev/corten/internal/errs"
)

// reader evaluates the blocks of all files. What others refer to is evaluated when it is first needed.
type reader struct {
	req       Request
	variables map[string]*variable
	targets   map[string][]hcl.Body // by name, in the order of the files
	order     []string
	groups    map[string][]hcl.Body
	funcs     map[string]function.Function
	values    map[string]cty.Value // what was evaluated: variables, and targets as "target.name"
	busy      []string             // what is being evaluated, to find cycles
}

// variable is a variable block, or an attribute outside of all blocks.
type variable struct {
	typ, def   hcl.Expression // may be nil
	global     bool           // an attribute: the environment does not change it
	validation []*hcl.Block
}

func labels(kind string) hcl.BlockHeaderSchema {
	return hcl.BlockHeaderSchema{Type: kind, LabelNames: []string{"name"}}
}

// bad is a finding of the HCL packages as an error: file, line, what is wrong, as buildx writes it.
func bad(diags hcl.Diagnostics) error {
	var all []error
	for _, d := range diags {
		if d.Severity == hcl.DiagError {
			where := ""
			if d.Subject != nil {
				where = d.Subject.String() + ": "
			}
			all = append(all, fmt.Errorf("%s%s; %s", where, d.Summary, d.Detail))
		}
	}
	return errs.As(errs.Invalid, errors.Join(all...)) // nil stays nil
}

// read reads the files and evaluates what they say.
func read(req Request) (*config, error) {
	r := &reader{
		req: req, variables: map[string]*variable{}, targets: map[string][]hcl.Body{}, groups: map[string][]hcl.Body{}, funcs: functions(), values: map[string]cty.Value{
			"BAKE_CMD_CONTEXT": cty.StringVal("cwd://"), "BAKE_LOCAL_PLATFORM": cty.StringVal(req.Platform),
		},
	}
	c := &config{groups: map[string]Group{}, targets: map[string]Target{}, changes: map[string][]change{}}
	if at := req.Env["BAKE_CMD_CONTEXT"]; at != "" {
		r.values["BAKE_CMD_CONTEXT"] = cty.StringVal(at)
	}
	links := &composer{extra: map[string][]byte{}, env: req.Env}
	for _, f := range req.Files {
		if f.Extra {
			links.extra[f.Name] = f.Data
		}
	}
	if data, ok := links.extra[projectEnv]; ok {
		vars, err := dotenv(projectEnv, data, req.Env)
		if err != nil {
			return nil, err
		}
		maps.Copy(vars, req.Env)
		links.env = vars
	}
	for _, f := range req.Files {
		if f.Extra {
			continue
		}
		compose, err := r.file(f)
		if err != nil {
			return nil, err
		}
		if compose {
			if err := c.compose(f, links); err != nil {
				return nil, err
			}
		}
	}
	if len(links.missing.Names)+len(links.missing.Optional) > 0 {
		return nil, &links.missing
	}
	return c, r.evaluate(c)
}

// file takes the blocks of a file; compose tells that it is a compose file, for others to read.
func (r *reader) file(f File) (compose bool, err error) {
	var file *hcl.File
	var diags hcl.Diagnostics
	switch path.Ext(f.Name) {
	case ".yml", ".yaml":
		return true, nil
	case ".json":
		file, diags = hcljson.Parse(f.Data, f.Name)
	case ".hcl":
		file, diags = hclsyntax.ParseConfig(f.Data, f.Name, hcl.InitialPos)
	default:
		if file, diags = hclsyntax.ParseConfig(f.Data, f.Name, hcl.InitialPos); diags.HasErrors() {
			if other, d := hcljson.Parse(f.Data, f.Name); !d.HasErrors() {
				file, diags = other, nil
			}
		}
	}
	if diags.HasErrors() {
		return false, bad(diags)
	}
	return false, r.blocks(file.Body)
}

func (r *reader) blocks(body hcl.Body) error {
	content, rest, diags := body.PartialContent(&hcl.BodySchema{Blocks: []hcl.BlockHeaderSchema{labels("variable"), labels("function"), labels("group"), labels("target")}})
	if diags.HasErrors() {
		return bad(diags)
	}
	for _, b := range content.Blocks {
		name := b.Labels[0]
		if (b.Type == "group" || b.Type == "target") && !validName(name) {
			return errs.New(errs.Invalid, "%s: %s %q: a name has letters, digits, _ and - only", b.DefRange, b.Type, name)
		}
		var err error
		switch b.Type {
		case "variable":
			err = r.variable(b)
		case "function":
			err = r.function(b)
		case "group":
			r.groups[name] = append(r.groups[name], b.Body)
		case "target":
			if _, ok := r.targets[name]; !ok {
				r.order = append(r.order, name)
			}
			r.targets[name] = append(r.targets[name], b.Body)
		}
		if err != nil {
			return err
		}
	}
	native, ok := rest.(*hclsyntax.Body)
	if !ok {
		attrs, diags := rest.JustAttributes()
		for name, a := range attrs {
			r.variables[name] = &variable{def: a.Expr, global: true}
		}
		return bad(diags)
	}
	// It has the blocks that were read, too.
	for _, b := range native.Blocks {
		if !slices.Contains([]string{"variable", "function", "group", "target"}, b.Type) {
			return errs.New(errs.Invalid, "%s: a bake file has no blocks of type %q", b.DefRange(), b.Type)
		}
	}
	for name, a := range native.Attributes {
		r.variables[name] = &variable{def: a.Expr, global: true}
	}
	return nil
}

// validName: what `--set` and the command line can name.
func validName(name string) bool {
	return name != "" && strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") == ""
}

func (r *reader) variable(b *hcl.Block) error {
	content, diags := b.Body.Content(&hcl.BodySchema{
		Attributes: []hcl.AttributeSchema{{Name: "default"}, {Name: "type"}, {Name: "description"}, {Name: "sensitive"}},
		Blocks:     []hcl.BlockHeaderSchema{{Type: "validation"}},
	})
	if diags.HasErrors() {
		return bad(diags)
	}
	v := r.variables[b.Labels[0]]
	if v == nil || v.global {
		v = &variable{}
		r.variables[b.Labels[0]] = v
	}
	if a := content.Attributes["default"]; a != nil {
		v.def = a.Expr
	}
	if a := content.Attributes["type"]; a != nil {
		v.typ = a.Expr
	}
	v.validation = append(v.validation, content.Blocks...)
	return nil
}

// value evaluates an expression. locals are known in it beside the variables.
func (r *reader) value(expr hcl.Expression, locals map[string]cty.Value) (cty.Value, error) {
	vars := map[string]cty.Value{}
	targets := map[string]cty.Value{}
	for _, t := range expr.Variables() {
		root := t.RootName()
		if _, ok := locals[root]; ok {
			continue
		}
		if root == "target" && len(t) > 1 {
			if step, ok := t[1].(hcl.TraverseAttr); ok {
				v, err := r.target(step.Name)
				if err != nil {
					return cty.NilVal, err
				}
				targets[step.Name] = v
				continue
			}
		}
		v, err := r.named(root)
		if err != nil {
			return cty.NilVal, fmt.Errorf("%s: %w", t.SourceRange(), err)
		}
		if v != cty.NilVal {
			vars[root] = v
		}
	}
	if len(targets) > 0 {
		vars["target"] = cty.ObjectVal(targets)
	}
	for name, v := range locals {
		vars[name] = v
	}
	v, diags := expr.Value(&hcl.EvalContext{Variables: vars, Functions: r.funcs})
	if diags.HasErrors() {
		return cty.NilVal, bad(diags)
	}
	return v, nil
}

// once evaluates what is named once, and finds cycles.
func (r *reader) once(name string, eval func() (cty.Value, error)) (cty.Value, error) {
	if v, ok := r.values[name]; ok {
		return v, nil
	}
	if slices.Contains(r.busy, name) {
		return cty.NilVal, errs.New(errs.Invalid, "%s refers to itself: %s", name, strings.Join(append(r.busy, name), " "))
	}
	r.busy = append(r.busy, name)
	v, err := eval()
	r.busy = r.busy[:len(r.busy)-1]
	if err == nil {
		r.values[name] = v
	}
	return v, err
}

// named gives a variable; NilVal when there is none of the name (the expression itself says that best).
func (r *reader) named(name string) (cty.Value, error) {
	if v, ok := r.values[name]; ok {
		return v, nil
	}
	v, ok := r.variables[name]
	if !ok {
		return cty.NilVal, nil
	}
	return r.once(name, func() (cty.Value, error) { return r.resolve(name, v) })
}

func (r *reader) resolve(name string, v *variable) (cty.Value, error) {
	want := cty.DynamicPseudoType
	if v.typ != nil {
		t, err := constraint(v.typ)
		if err != nil {
			return cty.NilVal, fmt.Errorf("variable %s: %w", name, err)
		}
		want = t
	}
	value := cty.NullVal(want)
	if v.def != nil {
		def, err := r.value(v.def, nil)
		if err != nil {
			return cty.NilVal, err
		}
		value = def
	}
	if want != cty.DynamicPseudoType {
		conv, err := convert.Convert(value, want)
		if err != nil {
			return cty.NilVal, errs.New(errs.Invalid, "variable %s: its default is no %s: %w", name, want.FriendlyName(), err)
		}
		value = conv
	}
	if !v.global {
		var err error
		if value, err = r.fromEnv(name, want, value); err != nil {
			return cty.NilVal, err
		}
	}
	if value.IsNull() && want == cty.DynamicPseudoType {
		value = cty.StringVal("") // a variable without a default is the empty string
		if v.def != nil {
			value = cty.NullVal(cty.String)
		}
	}
	return value, r.validate(name, v, value)
}

// validate checks the conditions of a variable. They may refer to it.
func (r *reader) validate(name string, v *variable, value cty.Value) error {
	for _, b := range v.validation {
		content, diags := b.Body.Content(&hcl.BodySchema{Attributes: []hcl.AttributeSchema{{Name: "condition", Required: true}, {Name: "error_message"}}})
		if diags.HasErrors() {
			return bad(diags)
		}
		locals := map[string]cty.Value{name: value}
		ok, err := r.value(content.Attributes["condition"].Expr, locals)
		if err != nil {
			return err
		}
		if ok.Type() == cty.Bool && ok.IsKnown() && !ok.IsNull() && ok.True() {
			continue
		}
		message := "This check failed."
		if a := content.Attributes["error_message"]; a != nil {
			m, err := r.value(a.Expr, locals)
			if err != nil {
				return err
			}
			if m.Type() == cty.String && !m.IsNull() {
				message = m.AsString()
			}
		}
		return errs.New(errs.Invalid, "%s: validation of variable %s failed: %s", b.DefRange, name, message)
	}
	return nil
}

// target gives a target's own attributes as an object, for others that refer to it.
func (r *reader) target(name string) (cty.Value, error) {
	bodies, ok := r.targets[name]
	if !ok {
		return cty.NilVal, errs.New(errs.NotFound, "failed to find target %s", name)
	}
	return r.once("target."+name, func() (cty.Value, error) {
		all := map[string]cty.Value{"name": cty.StringVal(name)}
		for _, body := range bodies {
			attrs, diags := body.JustAttributes()
			if diags.HasErrors() {
				return cty.NilVal, bad(diags)
			}
			for key, a := range attrs {
				v, err := r.value(a.Expr, nil)
				if err != nil {
					return cty.NilVal, err
				}
				all[key] = v
			}
		}
		return cty.ObjectVal(all), nil
	})
}

// function makes a function of a function block.
func (r *reader) function(b *hcl.Block) error {
	content, diags := b.Body.Content(&hcl.BodySchema{Attributes: []hcl.AttributeSchema{{Name: "params", Required: true}, {Name: "variadic_param"}, {Name: "variadic_params"}, {Name: "result", Required: true}}})
	if diags.HasErrors() {
		return bad(diags)
	}
	list, diags := hcl.ExprList(content.Attributes["params"].Expr)
	if diags.HasErrors() {
		return bad(diags)
	}
	spec := &function.Spec{}
	for _, p := range list {
		name := hcl.ExprAsKeyword(p)
		if name == "" {
			return errs.New(errs.Invalid, "%s: a parameter of function %s is no name", p.Range(), b.Labels[0])
		}
		spec.Params = append(spec.Params, function.Parameter{Name: name, Type: cty.DynamicPseudoType, AllowNull: true, AllowDynamicType: true})
	}
	for _, key := range []string{"variadic_param", "variadic_params"} {
		if a := content.Attributes[key]; a != nil {
			name := hcl.ExprAsKeyword(a.Expr)
			if name == "" {
				return errs.New(errs.Invalid, "%s: the variadic parameter of function %s is no name", a.Range, b.Labels[0])
			}
			spec.VarParam = &function.Parameter{Name: name, Type: cty.DynamicPseudoType, AllowNull: true, AllowDynamicType: true}
		}
	}
	result := content.Attributes["result"].Expr
	depth := 0
	call := func(args []cty.Value) (cty.Value, error) {
		if depth++; depth > 100 {
			return cty.NilVal, fmt.Errorf("function %s calls itself without end", b.Labels[0])
		}
		defer func() { depth-- }()
		locals := map[string]cty.Value{}
		for i, p := range spec.Params {
			locals[p.Name] = args[i]
		}
		if spec.VarParam != nil {
			locals[spec.VarParam.Name] = cty.TupleVal(args[len(spec.Params):])
		}
		return r.value(result, locals)
	}
	spec.Type = function.StaticReturnType(cty.DynamicPseudoType) // asked for the type, it would have to be evaluated twice, and what it calls four times
	spec.Impl = func(args []cty.Value, _ cty.Type) (cty.Value, error) { return call(args) }
	r.funcs[b.Labels[0]] = function.New(spec)
	return nil
}
