package bake

import (
	"fmt"
	"strings"
)

// interpolate puts the values of variables into all strings, as compose files write them: $NAME, ${NAME}, ${NAME:-default}, ${NAME-default}, ${NAME:?error}, ${NAME?error}, ${NAME:+other},
// ${NAME+other}; $$ is a dollar.
func interpolate(v any, env map[string]string) (any, error) {
	switch v := v.(type) {
	case string:
		return expand(v, env, 0)
	case []any:
		for i := range v {
			one, err := interpolate(v[i], env)
			if err != nil {
				return nil, err
			}
			v[i] = one
		}
	case map[string]any:
		for k := range v {
			one, err := interpolate(v[k], env)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", k, err)
			}
			v[k] = one
		}
	}
	return v, nil
}

func nameLen(s string) int {
	n := 0
	for n < len(s) && (s[n] == '_' || s[n] >= 'a' && s[n] <= 'z' || s[n] >= 'A' && s[n] <= 'Z' || n > 0 && s[n] >= '0' && s[n] <= '9') {
		n++
	}
	return n
}

func expand(s string, env map[string]string, depth int) (string, error) {
	if depth > 20 {
		return "", fmt.Errorf("variables are nested too deep")
	}
	var out strings.Builder
	for {
		before, rest, ok := strings.Cut(s, "$")
		out.WriteString(before)
		if !ok {
			return out.String(), nil
		}
		if strings.HasPrefix(rest, "$") {
			out.WriteByte('$')
			s = rest[1:]
			continue
		}
		if n := nameLen(rest); n > 0 {
			out.WriteString(env[rest[:n]])
			s = rest[n:]
			continue
		}
		if !strings.HasPrefix(rest, "{") {
			return "", fmt.Errorf("invalid interpolation format for %q: a dollar is written $$", "$"+rest)
		}
		inner, after, ok := braced(rest[1:])
		if !ok {
			return "", fmt.Errorf("invalid interpolation format for %q: a brace is not closed", "$"+rest)
		}
		value, err := substitute(inner, env, depth)
		if err != nil {
			return "", err
		}
		out.WriteString(value)
		s = after
	}
}

// braced cuts at the brace that closes, nested ones kept.
func braced(s string) (inner, after string, ok bool) {
	depth := 1
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '{' && i > 0 && s[i-1] == '$':
			depth++
		case s[i] == '}':
			if depth--; depth == 0 {
				return s[:i], s[i+1:], true
			}
		}
	}
	return "", "", false
}

func substitute(inner string, env map[string]string, depth int) (string, error) {
	n := nameLen(inner)
	if n == 0 {
		return "", fmt.Errorf("invalid interpolation format for %q", "${"+inner+"}")
	}
	name, rest := inner[:n], inner[n:]
	value, set := env[name]
	if rest == "" {
		return value, nil
	}
	if after, colon := strings.CutPrefix(rest, ":"); colon {
		rest, set = after, set && value != ""
	}
	if rest == "" {
		return "", fmt.Errorf("invalid interpolation format for %q", "${"+inner+"}")
	}
	switch op, word := rest[0], rest[1:]; op {
	case '-':
		if set {
			return value, nil
		}
		return expand(word, env, depth+1)
	case '+':
		if !set {
			return "", nil
		}
		return expand(word, env, depth+1)
	case '?':
		if set {
			return value, nil
		}
		return "", fmt.Errorf("required variable %s is missing a value: %s", name, word)
	}
	return "", fmt.Errorf("invalid interpolation format for %q", "${"+inner+"}")
}
