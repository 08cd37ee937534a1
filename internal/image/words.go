package image

import (
	"encoding/json"
	"strings"

	"corten.dev/corten/internal/errs"
)

// jsonList reads ["a", "b"]. What is no such list is in shell form.
func jsonList(s string) ([]string, bool) {
	if !strings.HasPrefix(s, "[") {
		return nil, false
	}
	var list []string
	if json.Unmarshal([]byte(s), &list) != nil || list == nil {
		return nil, false
	}
	return list, true
}

// splitWords cuts at blanks outside of quotes. Quotes and backslashes stay for expand.
func splitWords(s string) (words []string) {
	var quote byte
	start := -1
	for i := 0; i < len(s); i++ {
		c := s[i]
		blank := c == ' ' || c == '\t'
		switch {
		case blank && quote == 0:
			if start >= 0 {
				words = append(words, s[start:i])
				start = -1
			}
			continue
		case c == '\\' && quote != '\'' && i+1 < len(s):
			if start < 0 {
				start = i
			}
			i++
		case quote == 0 && (c == '"' || c == '\''):
			quote = c
		case c == quote:
			quote = 0
		}
		if start < 0 {
			start = i
		}
	}
	if start >= 0 {
		words = append(words, s[start:])
	}
	return words
}

// nameValues reads `name=value …`, or the old form `name value with blanks`.
func nameValues(what, args string, env []string) (pairs [][2]string, err error) {
	words := splitWords(args)
	if len(words) == 0 {
		return nil, errs.New(errs.Invalid, "%s requires at least one argument", what)
	}
	if !strings.Contains(words[0], "=") {
		name, val, ok := strings.Cut(args, " ")
		if !ok {
			return nil, errs.New(errs.Invalid, "%s must have two arguments", what)
		}
		words = []string{name + "=" + strings.TrimSpace(val)}
	}
	for _, w := range words {
		name, val, ok := strings.Cut(w, "=")
		if !ok {
			return nil, errs.New(errs.Invalid, "Syntax error - can't find = in %q. Must be of the form: name=value", w)
		}
		if name, err = expand(name, env); err != nil {
			return nil, err
		}
		if val, err = expand(val, env); err != nil {
			return nil, err
		}
		if name == "" {
			return nil, errs.New(errs.Invalid, "%s names can not be blank", what)
		}
		pairs = append(pairs, [2]string{name, val})
	}
	return pairs, nil
}

func expandAll(words, env []string) ([]string, error) {
	out := make([]string, len(words))
	for i, w := range words {
		var err error
		if out[i], err = expand(w, env); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// expander takes quotes away and puts variables in.
type expander struct {
	s   string
	i   int
	env []string
	out strings.Builder
}

func expand(word string, env []string) (string, error) {
	e := &expander{s: word, env: env}
	for e.i < len(e.s) {
		c := e.s[e.i]
		e.i++
		var err error
		switch c {
		case '\'':
			end := strings.IndexByte(e.s[e.i:], '\'')
			if end < 0 {
				return "", errs.New(errs.Invalid, "unexpected end of statement while looking for matching single-quote")
			}
			e.out.WriteString(e.s[e.i : e.i+end])
			e.i += end + 1
		case '"':
			err = e.doubleQuoted()
		case '$':
			err = e.variable()
		case '\\':
			if e.i < len(e.s) {
				e.out.WriteByte(e.s[e.i])
				e.i++
			}
		default:
			e.out.WriteByte(c)
		}
		if err != nil {
			return "", err
		}
	}
	return e.out.String(), nil
}

func (e *expander) doubleQuoted() error {
	for e.i < len(e.s) {
		c := e.s[e.i]
		e.i++
		switch c {
		case '"':
			return nil
		case '$':
			if err := e.variable(); err != nil {
				return err
			}
		case '\\':
			// Inside double quotes a backslash escapes only these.
			if e.i < len(e.s) && strings.IndexByte(`"$\`, e.s[e.i]) >= 0 {
				c = e.s[e.i]
				e.i++
			}
			e.out.WriteByte(c)
		default:
			e.out.WriteByte(c)
		}
	}
	return errs.New(errs.Invalid, "unexpected end of statement while looking for matching double-quote")
}

// variable stands behind the dollar.
func (e *expander) variable() error {
	if e.i == len(e.s) || e.s[e.i] != '{' {
		name := e.name()
		if name == "" {
			e.out.WriteByte('$')
			return nil
		}
		val, _ := e.lookup(name)
		e.out.WriteString(val)
		return nil
	}
	e.i++
	name := e.name()
	end := closing(e.s, e.i)
	if name == "" || end < 0 {
		return errs.New(errs.Invalid, "unsupported or unfinished variable in %q", e.s)
	}
	op := e.s[e.i:end]
	e.i = end + 1
	val, set := e.lookup(name)
	colon := strings.HasPrefix(op, ":")
	op = strings.TrimPrefix(op, ":")
	if op == "" {
		if colon {
			return errs.New(errs.Invalid, "unsupported modifier in %q", e.s)
		}
		e.out.WriteString(val)
		return nil
	}
	other, err := expand(op[1:], e.env)
	if err != nil {
		return err
	}
	good := set && (!colon || val != "")
	switch op[0] {
	case '-':
		if !good {
			val = other
		}
	case '+':
		val = ""
		if good {
			val = other
		}
	case '?':
		if !good {
			return errs.New(errs.Invalid, "%s: %s", name, other)
		}
	default:
		return errs.New(errs.Invalid, "unsupported modifier (%s) in substitution", op[:1])
	}
	e.out.WriteString(val)
	return nil
}

// closing finds the brace that ends the variable which is open at i.
func closing(s string, i int) int {
	depth := 1
	for ; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case '{':
			depth++
		case '}':
			if depth--; depth == 0 {
				return i
			}
		}
	}
	return -1
}

func (e *expander) name() string {
	start := e.i
	for e.i < len(e.s) {
		c := e.s[e.i]
		if !(c == '_' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || e.i > start && c >= '0' && c <= '9') {
			break
		}
		e.i++
	}
	return e.s[start:e.i]
}

func (e *expander) lookup(name string) (string, bool) {
	for i := len(e.env) - 1; i >= 0; i-- {
		if val, ok := strings.CutPrefix(e.env[i], name+"="); ok {
			return val, true
		}
	}
	return "", false
}
