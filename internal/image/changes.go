package image

import (
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/errs"
)

func (r RunConfig) clone() RunConfig {
	r.ExposedPorts, r.Volumes, r.Labels = maps.Clone(r.ExposedPorts), maps.Clone(r.Volumes), maps.Clone(r.Labels)
	r.Env, r.Entrypoint, r.Cmd = slices.Clone(r.Env), slices.Clone(r.Entrypoint), slices.Clone(r.Cmd)
	r.OnBuild, r.Shell = slices.Clone(r.OnBuild), slices.Clone(r.Shell)
	if r.StopTimeout != nil {
		n := *r.StopTimeout
		r.StopTimeout = &n
	}
	if r.Healthcheck != nil {
		h := *r.Healthcheck
		h.Test = slices.Clone(h.Test)
		r.Healthcheck = &h
	}
	return r
}

// change applies instructions one after the other.
type change struct {
	run    *RunConfig
	cmdSet bool
}

// ApplyChanges carries out what `--change` of commit and import may say: the Dockerfile instructions CMD, ENTRYPOINT, ENV, EXPOSE, HEALTHCHECK, LABEL,
// ONBUILD, STOPSIGNAL, USER, VOLUME and WORKDIR, with Dockerfile's quoting, line continuation and variables.
func ApplyChanges(run *RunConfig, changes []string) error {
	c := &change{run: run}
	lines := strings.ReplaceAll(strings.Join(changes, "\n"), "\r\n", "\n")
	var whole strings.Builder
	for line := range strings.SplitSeq(lines, "\n") {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		if cut, ok := strings.CutSuffix(line, `\`); ok {
			whole.WriteString(cut)
			continue
		}
		whole.WriteString(line)
		if err := c.instruction(whole.String()); err != nil {
			return err
		}
		whole.Reset()
	}
	if whole.Len() > 0 {
		return c.instruction(whole.String())
	}
	return nil
}

func (c *change) instruction(line string) error {
	word, args, _ := strings.Cut(strings.Replace(line, "\t", " ", 1), " ")
	args = strings.TrimSpace(args)
	name := strings.ToUpper(word)
	do, ok := map[string]func(string) error{
		"CMD": c.cmd, "ENTRYPOINT": c.entrypoint, "ENV": c.env, "EXPOSE": c.expose, "HEALTHCHECK": c.healthcheck, "LABEL": c.label,
		"ONBUILD": c.onbuild, "STOPSIGNAL": c.stopSignal, "USER": c.user, "VOLUME": c.volume, "WORKDIR": c.workdir,
	}[name]
	if !ok {
		return errs.New(errs.Invalid, "%s is not a valid change command", strings.ToLower(word))
	}
	if args == "" && name != "CMD" && name != "ENTRYPOINT" {
		return errs.New(errs.Invalid, "%s requires at least one argument", name)
	}
	return do(args)
}

// command reads a command in JSON or shell form.
func (c *change) command(args string) []string {
	if list, ok := jsonList(args); ok {
		return list
	}
	shell := c.run.Shell
	if len(shell) == 0 {
		shell = []string{"/bin/sh", "-c"}
	}
	return append(slices.Clone(shell), args)
}

func (c *change) cmd(args string) error {
	c.run.Cmd, c.cmdSet = c.command(args), true
	c.run.ArgsEscaped = false
	return nil
}

// entrypoint drops the inherited command, which was meant for another entrypoint.
func (c *change) entrypoint(args string) error {
	if args == "" {
		c.run.Entrypoint = []string{}
	} else {
		c.run.Entrypoint = c.command(args)
	}
	if !c.cmdSet {
		c.run.Cmd = nil
	}
	return nil
}

func (c *change) env(args string) error {
	pairs, err := nameValues("ENV", args, c.run.Env)
	if err != nil {
		return err
	}
	for _, p := range pairs {
		i := slices.IndexFunc(c.run.Env, func(kv string) bool { return strings.HasPrefix(kv, p[0]+"=") || kv == p[0] })
		if i < 0 {
			c.run.Env = append(c.run.Env, p[0]+"="+p[1])
		} else {
			c.run.Env[i] = p[0] + "=" + p[1]
		}
	}
	return nil
}

func (c *change) label(args string) error {
	pairs, err := nameValues("LABEL", args, c.run.Env)
	if err != nil {
		return err
	}
	if c.run.Labels == nil {
		c.run.Labels = map[string]string{}
	}
	for _, p := range pairs {
		c.run.Labels[p[0]] = p[1]
	}
	return nil
}

func (c *change) expose(args string) error {
	list, err := expandAll(splitWords(args), c.run.Env)
	if err != nil {
		return err
	}
	for _, word := range list {
		if word == "" {
			continue // a variable that is not set
		}
		ports, err := parseExpose(word)
		if err != nil {
			return err
		}
		if c.run.ExposedPorts == nil {
			c.run.ExposedPorts = map[string]struct{}{}
		}
		for _, p := range ports {
			c.run.ExposedPorts[p] = struct{}{}
		}
	}
	return nil
}

// parseExpose reads PORT[-END][/PROTO]. What stands before the last colon is a published port, as some Dockerfiles have it: it means nothing here, as with Docker.
func parseExpose(word string) ([]string, error) {
	spec := word[strings.LastIndexByte(word, ':')+1:]
	ports, proto, _ := strings.Cut(spec, "/")
	if ports == "" {
		return nil, errs.New(errs.Invalid, "no port specified: %s<empty>", word)
	}
	proto = strings.ToLower(proto)
	switch proto {
	case "":
		proto = "tcp"
	case "tcp", "udp", "sctp":
	default:
		return nil, errs.New(errs.Invalid, "invalid proto: %s", proto)
	}
	from, to, isRange := strings.Cut(ports, "-")
	a, err := strconv.ParseUint(from, 10, 16)
	b := a
	if err == nil && isRange {
		b, err = strconv.ParseUint(to, 10, 16)
	}
	if err != nil || b < a {
		return nil, errs.New(errs.Invalid, "invalid containerPort: %s", ports)
	}
	var all []string
	for ; a <= b; a++ {
		all = append(all, strconv.FormatUint(a, 10)+"/"+proto)
	}
	return all, nil
}

func (c *change) volume(args string) error {
	list, ok := jsonList(args)
	if !ok {
		list = splitWords(args)
	}
	list, err := expandAll(list, c.run.Env)
	if err != nil {
		return err
	}
	for _, v := range list {
		if strings.TrimSpace(v) == "" {
			return errs.New(errs.Invalid, "VOLUME specified can not be an empty string")
		}
		if c.run.Volumes == nil {
			c.run.Volumes = map[string]struct{}{}
		}
		c.run.Volumes[v] = struct{}{}
	}
	return nil
}

// one reads the argument of an instruction that takes exactly one.
func (c *change) one(name, args string) (string, error) {
	list := splitWords(args)
	if len(list) != 1 {
		return "", errs.New(errs.Invalid, "%s requires exactly one argument", name)
	}
	return expand(list[0], c.run.Env)
}

func (c *change) user(args string) (err error) {
	c.run.User, err = c.one("USER", args)
	return err
}

func (c *change) workdir(args string) error {
	dir, err := expand(args, c.run.Env)
	if err != nil {
		return err
	}
	if dir == "" {
		return errs.New(errs.Invalid, "cannot normalize nothing")
	}
	if !path.IsAbs(dir) {
		dir = path.Join("/", c.run.WorkingDir, dir)
	}
	c.run.WorkingDir = path.Clean(dir)
	return nil
}

func (c *change) stopSignal(args string) error {
	sig, err := c.one("STOPSIGNAL", args)
	if err != nil {
		return err
	}
	if n, err := strconv.Atoi(sig); err == nil {
		if n < 1 || n > 64 {
			return errs.New(errs.Invalid, "invalid signal: %s", sig)
		}
	} else if name := "SIG" + strings.TrimPrefix(strings.ToUpper(sig), "SIG"); unix.SignalNum(name) == 0 && !strings.HasPrefix(name, "SIGRTM") {
		return errs.New(errs.Invalid, "invalid signal: %s", sig)
	}
	c.run.StopSignal = sig
	return nil
}

func (c *change) onbuild(args string) error {
	word, _, _ := strings.Cut(args, " ")
	switch up := strings.ToUpper(word); up {
	case "ONBUILD":
		return errs.New(errs.Invalid, "Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed")
	case "MAINTAINER", "FROM":
		return errs.New(errs.Invalid, "%s isn't allowed as an ONBUILD trigger", up)
	}
	c.run.OnBuild = append(c.run.OnBuild, args)
	return nil
}

func (c *change) healthcheck(args string) error {
	var h Healthcheck
	for strings.HasPrefix(args, "--") {
		var flag string
		flag, args, _ = strings.Cut(args, " ")
		args = strings.TrimSpace(args)
		if err := h.option(flag); err != nil {
			return err
		}
	}
	word, rest, _ := strings.Cut(args, " ")
	rest = strings.TrimSpace(rest)
	switch strings.ToUpper(word) {
	case "NONE":
		if rest != "" {
			return errs.New(errs.Invalid, "HEALTHCHECK NONE takes no arguments")
		}
		h = Healthcheck{Test: []string{"NONE"}}
	case "CMD":
		if rest == "" {
			return errs.New(errs.Invalid, "Missing command after HEALTHCHECK CMD")
		}
		if list, ok := jsonList(rest); ok {
			h.Test = append([]string{"CMD"}, list...)
		} else {
			h.Test = []string{"CMD-SHELL", rest}
		}
	default:
		return errs.New(errs.Invalid, "Unknown type %q in HEALTHCHECK (try CMD)", word)
	}
	c.run.Healthcheck = &h
	return nil
}

func (h *Healthcheck) option(flag string) error {
	name, val, ok := strings.Cut(flag, "=")
	if !ok {
		return errs.New(errs.Invalid, "Missing a value on flag: %s", flag)
	}
	if name == "--retries" {
		n, err := strconv.Atoi(val)
		if err != nil || n < 0 {
			return errs.New(errs.Invalid, "--retries cannot be %q", val)
		}
		h.Retries = n
		return nil
	}
	to, ok := map[string]*time.Duration{"--interval": &h.Interval, "--timeout": &h.Timeout, "--start-period": &h.StartPeriod, "--start-interval": &h.StartInterval}[name]
	if !ok {
		return errs.New(errs.Invalid, "Unknown flag: %s", strings.TrimPrefix(name, "--"))
	}
	d, err := time.ParseDuration(val)
	if err != nil {
		return errs.New(errs.Invalid, "HEALTHCHECK %s: %w", name, err)
	}
	if d != 0 && d < time.Millisecond {
		return errs.New(errs.Invalid, "Interval %q cannot be less than 1ms", strings.TrimPrefix(name, "--"))
	}
	*to = d
	return nil
}
