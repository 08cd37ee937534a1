package bake

import (
	"maps"
	"strings"

	"corten.dev/corten/internal/errs"
)

// dotenv reads the variables of a .env file, as compose does. Values see the environment, then what stands above them.
//
//	# a comment                    NAME=plain ${OTHER:-x}   # a comment, behind a space
//	export NAME: value             NAME="with\nescapes ${OTHER}"     NAME='as it is $OTHER'     both may go over several lines
//	NAME                           takes the variable of the environment, if there is one
func dotenv(file string, data []byte, env map[string]string) (vars map[string]string, err error) {
	seen := map[string]string{}
	maps.Copy(seen, env)
	vars = map[string]string{}
	text := strings.ReplaceAll(strings.TrimPrefix(string(data), "\ufeff"), "\r\n", "\n")
	for line := 1; text != ""; {
		before := len(text)
		whole := text
		name, value, rest, err := dotenvLine(text, seen)
		if err != nil {
			return nil, errs.New(errs.Invalid, "%s: line %d: %w", file, line, err)
		}
		text = rest
		line += strings.Count(whole[:before-len(rest)], "\n")
		if name == "" {
			continue
		}
		vars[name] = value
		if _, given := env[name]; !given {
			seen[name] = value
		}
	}
	return vars, nil
}

// projectEnv is the file of variables that compose files have without naming it.
const projectEnv = ".env"

// dotenvLine takes one assignment, or an empty line, from the front of text.
func dotenvLine(text string, env map[string]string) (name, value, rest string, err error) {
	line, after, _ := strings.Cut(text, "\n")
	trimmed := strings.TrimLeft(line, " \t")
	if strings.TrimSpace(trimmed) == "" || trimmed[0] == '#' {
		return "", "", after, nil
	}
	if word, ok := strings.CutPrefix(trimmed, "export"); ok && strings.TrimLeft(word, " \t") != word {
		trimmed = strings.TrimLeft(word, " \t")
	}
	n := strings.IndexAny(trimmed, "=:")
	if n < 0 { // the name alone
		return "", "", after, dotenvName(strings.TrimSpace(trimmed))
	}
	name = strings.TrimSpace(trimmed[:n])
	if err := dotenvName(name); err != nil {
		return "", "", "", err
	}
	from := text[len(line)-len(trimmed)+n+1:]
	from = strings.TrimLeft(from, " \t")
	if from != "" && (from[0] == '"' || from[0] == '\'') {
		value, rest, err = dotenvQuoted(from, env)
		return name, value, rest, err
	}
	plain, rest, _ := strings.Cut(from, "\n")
	for i := range plain {
		if plain[i] == '#' && (i == 0 || plain[i-1] == ' ' || plain[i-1] == '\t') {
			plain = plain[:i]
			break
		}
	}
	value, err = expand(strings.TrimSpace(plain), env, 0)
	return name, value, rest, err
}

func dotenvName(name string) error {
	for i := range len(name) {
		c := name[i]
		if c != '_' && c != '.' && c != '-' && !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9') {
			return errs.New(errs.Invalid, "unexpected character %q in variable name %q", c, name)
		}
	}
	if name == "" {
		return errs.New(errs.Invalid, "a value without a name")
	}
	return nil
}

// dotenvQuoted takes a value in quotes from the front of text; what stands behind it on its line is a comment or nothing.
func dotenvQuoted(text string, env map[string]string) (value, rest string, err error) {
	quote := text[0]
	end := 1
	for end < len(text) && text[end] != quote {
		if text[end] == '\\' && end+1 < len(text) {
			end++
		}
		end++
	}
	if end >= len(text) {
		return "", "", errs.New(errs.Invalid, "unterminated quoted value")
	}
	value = text[1:end]
	behind, rest, _ := strings.Cut(text[end+1:], "\n")
	if behind = strings.TrimSpace(behind); behind != "" && behind[0] != '#' {
		return "", "", errs.New(errs.Invalid, "unexpected %q behind a quoted value", behind)
	}
	if quote == '\'' {
		return strings.ReplaceAll(value, `\'`, `'`), rest, nil
	}
	value = strings.NewReplacer(`\n`, "\n", `\r`, "\r", `\t`, "\t", `\"`, `"`, `\\`, `\`, `\$`, "$$").Replace(value)
	value, err = expand(value, env, 0)
	return value, rest, err
}
