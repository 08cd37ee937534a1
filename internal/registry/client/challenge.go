package client

import (
	"net/http"
	"strings"
)

// challenge is one way a server wants to be answered (RFC 9110, 11.6.1): a scheme and its parameters, names in lower case.
type challenge struct {
	scheme string // "basic", "bearer"
	params map[string]string
}

// Bounds of what is read of WWW-Authenticate.
const (
	maxChallenge  = 16 << 10
	maxChallenges = 16
	maxParams     = 32
)

// challenges reads the WWW-Authenticate lines of an answer:
//
//	header     = challenge *( "," challenge )
//	challenge  = scheme [ 1*SP ( token68 / param *( "," param ) ) ]
//	param      = token "=" ( token / quoted-string )
//
// One line may hold several challenges, and only what follows a word tells whether the word begins a challenge or a parameter. What cannot be
// read ends the reading; what was read before it counts. Values without quotes may hold what URLs hold: registries write them so.
func challenges(h http.Header) []challenge {
	var all []challenge
	left := maxChallenge
	for _, line := range h.Values("WWW-Authenticate") {
		if left -= len(line); left < 0 {
			break
		}
		all = append(all, parseChallenges(line)...)
		if len(all) > maxChallenges {
			return all[:maxChallenges]
		}
	}
	return all
}

func parseChallenges(line string) []challenge {
	var all []challenge
	p := &scanner{rest: line}
	for len(all) <= maxChallenges {
		p.skip(" \t,")
		word := p.token()
		if word == "" {
			break
		}
		spaced := p.skip(" \t")
		if p.next('=') {
			if len(all) == 0 {
				break
			}
			value, ok := p.value()
			if !ok {
				break
			}
			if params := all[len(all)-1].params; len(params) < maxParams {
				params[strings.ToLower(word)] = value
			}
			continue
		}
		all = append(all, challenge{strings.ToLower(word), map[string]string{}})
		if spaced {
			p.token68()
		}
	}
	return all
}

type scanner struct{ rest string }

func (p *scanner) skip(set string) bool {
	n := len(p.rest)
	p.rest = strings.TrimLeft(p.rest, set)
	return len(p.rest) < n
}

func (p *scanner) next(c byte) bool {
	if p.rest == "" || p.rest[0] != c {
		return false
	}
	p.rest = p.rest[1:]
	return true
}

func (p *scanner) token() string {
	i := 0
	for i < len(p.rest) && tokenByte(p.rest[i]) {
		i++
	}
	word := p.rest[:i]
	p.rest = p.rest[i:]
	return word
}

func tokenByte(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0
}

// value is a token or a quoted string, after the "=".
func (p *scanner) value() (string, bool) {
	p.skip(" \t")
	if !p.next('"') {
		i := strings.IndexAny(p.rest, ", \t")
		if i < 0 {
			i = len(p.rest)
		}
		word := p.rest[:i]
		p.rest = p.rest[i:]
		return word, true
	}
	var b strings.Builder
	for i := 0; i < len(p.rest); i++ {
		switch c := p.rest[i]; {
		case c == '"':
			p.rest = p.rest[i+1:]
			return b.String(), true
		case c == '\\' && i+1 < len(p.rest):
			i++
			b.WriteByte(p.rest[i])
		default:
			b.WriteByte(c)
		}
	}
	return "", false
}

// token68 passes over the other form of parameters ("Negotiate abc=="), which ends the challenge.
func (p *scanner) token68() {
	i := 0
	for i < len(p.rest) && (tokenByte(p.rest[i]) || p.rest[i] == '/') {
		i++
	}
	j := i
	for j < len(p.rest) && p.rest[j] == '=' {
		j++
	}
	tail := strings.TrimLeft(p.rest[j:], " \t")
	if i > 0 && (tail == "" || tail[0] == ',') && (j > i || strings.Contains(p.rest[:i], "/")) {
		p.rest = tail
	}
}
