package metrics

import (
	"math"
	"strconv"
	"strings"
)

// Format is how figures are written.
type Format int

// The formats: OpenMetrics 1.0 and the older text of Prometheus (0.0.4), which knows neither units nor the type info, and has the whole name of a counter in its type line.
const (
	Prometheus Format = iota
	OpenMetrics
)

// ContentType is the format's media type.
func (f Format) ContentType() string {
	if f == OpenMetrics {
		return "application/openmetrics-text; version=1.0.0; charset=utf-8"
	}
	return "text/plain; version=0.0.4; charset=utf-8"
}

// Negotiate reads an Accept header: OpenMetrics for who likes it at least as much as plain text.
func Negotiate(accept string) Format {
	open, plain := 0.0, 0.0
	for part := range strings.SplitSeq(accept, ",") {
		fields := strings.Split(part, ";")
		q, version := 1.0, ""
		for _, param := range fields[1:] {
			key, value, _ := strings.Cut(strings.TrimSpace(param), "=")
			switch strings.ToLower(key) {
			case "q":
				if n, err := strconv.ParseFloat(value, 64); err == nil {
					q = n
				}
			case "version":
				version = strings.Trim(value, `"`)
			}
		}
		switch strings.ToLower(strings.TrimSpace(fields[0])) {
		case "application/openmetrics-text":
			if version == "" || version == "1.0.0" {
				open = max(open, q)
			}
		case "text/plain", "text/*", "*/*":
			plain = max(plain, q)
		}
	}
	if open > 0 && open >= plain {
		return OpenMetrics
	}
	return Prometheus
}

// kind is the type of a family.
type kind string

const (
	gauge   kind = "gauge"
	counter kind = "counter"
	info    kind = "info"
)

// page is an answer in the making. Families are written one after the other, each with all its samples, as both formats want it.
type page struct {
	format Format
	b      []byte
	// The family that is being written.
	sample string // name of its samples
	begun  bool
	name   string
	kind   kind
	unit   string
	help   string
}

// family begins one. The name is OpenMetrics': without _total and _info. A unit is the end of the name.
func (p *page) family(name string, k kind, unit, help string) {
	p.name, p.kind, p.unit, p.help, p.begun = name, k, unit, help, false
	p.sample = name
	switch k {
	case counter:
		p.sample += "_total"
	case info:
		p.sample += "_info"
	}
}

// head is written with the first sample: a family without any is left out.
func (p *page) head() {
	p.begun = true
	name, k := p.name, p.kind
	if p.format == Prometheus {
		name = p.sample
		if k == info {
			k = gauge
		}
	}
	line := func(what, text string) { p.b = append(p.b, "# "+what+" "+name+" "+text+"\n"...) }
	line("HELP", escapeHelp(p.help))
	line("TYPE", string(k))
	if p.unit != "" && p.format == OpenMetrics {
		line("UNIT", p.unit)
	}
}

// add writes a sample; labels is what [labels] made, or empty.
func (p *page) add(labels string, value float64) {
	if !p.begun {
		p.head()
	}
	p.b = append(p.b, p.sample...)
	if labels != "" {
		p.b = append(append(append(p.b, '{'), labels...), '}')
	}
	p.b = append(p.b, ' ')
	if value == math.Trunc(value) && math.Abs(value) < 1<<53 {
		p.b = strconv.AppendInt(p.b, int64(value), 10)
	} else {
		p.b = strconv.AppendFloat(p.b, value, 'g', -1, 64)
	}
	p.b = append(p.b, '\n')
}

// end completes the answer.
func (p *page) end() []byte {
	if p.format == OpenMetrics {
		p.b = append(p.b, "# EOF\n"...)
	}
	return p.b
}

// labels writes pairs of names and values, without braces. Containers have many samples: it is done once for all of them.
func labels(pairs ...string) string {
	var b strings.Builder
	for i := 0; i+1 < len(pairs); i += 2 {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(pairs[i])
		b.WriteString(`="`)
		b.WriteString(escape.Replace(strings.ToValidUTF8(pairs[i+1], "\uFFFD")))
		b.WriteByte('"')
	}
	return b.String()
}

var (
	escape    = strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`)
	escapeAll = strings.NewReplacer(`\`, `\\`, "\n", `\n`)
)

func escapeHelp(s string) string { return escapeAll.Replace(s) }
