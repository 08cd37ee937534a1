package containers

import (
	"context"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/sys/user"

	"corten.dev/corten/internal/errs"
)

// Top lists a container's processes as `ps` on the host would, from /proc; no ps has to be installed.
func (s *Service) Top(ctx context.Context, ref string, psArgs []string) (titles []string, rows [][]string, err error) {
	ctr, _, proc, err := s.running(ctx, ref)
	if err != nil {
		return nil, nil, err
	}
	columns, err := psColumns(psArgs)
	if err != nil {
		return nil, nil, err
	}
	pids, err := proc.PIDs(ctx)
	if err != nil {
		return nil, nil, err
	}
	slices.Sort(pids)
	host := readHost()
	for _, col := range columns {
		titles = append(titles, col.title)
	}
	for _, pid := range pids {
		p, ok := readProcess(pid)
		if !ok {
			continue // it ended meanwhile
		}
		row := make([]string, len(columns))
		for i, col := range columns {
			row[i] = col.show(&p, host)
		}
		rows = append(rows, row)
	}
	s.emit(ctr, "top", nil)
	return titles, rows, nil
}

// psHost is what processes are measured against.
type psHost struct {
	boot   time.Time
	memory uint64 // kB
	users  map[int]string
	groups map[int]string
	now    time.Time
}

func readHost() *psHost {
	h := &psHost{users: map[int]string{}, groups: map[int]string{}, now: time.Now()}
	if b, err := os.ReadFile("/proc/stat"); err == nil {
		for line := range strings.Lines(string(b)) {
			if v, ok := strings.CutPrefix(line, "btime "); ok {
				sec, _ := strconv.ParseInt(strings.TrimSpace(v), 10, 64)
				h.boot = time.Unix(sec, 0)
			}
		}
	}
	if b, err := os.ReadFile("/proc/meminfo"); err == nil {
		if f := strings.Fields(string(b)); len(f) > 1 {
			h.memory, _ = strconv.ParseUint(f[1], 10, 64)
		}
	}
	if list, err := user.ParsePasswdFile("/etc/passwd"); err == nil {
		for _, u := range list {
			h.users[u.Uid] = u.Name
		}
	}
	if list, err := user.ParseGroupFile("/etc/group"); err == nil {
		for _, g := range list {
			h.groups[g.Gid] = g.Name
		}
	}
	return h
}

const ticks = 100 // USER_HZ of every Linux that Go runs on

// psProcess is what /proc says of one process.
type psProcess struct {
	pid, ppid, pgid, sid, tty int
	uid, gid                  int
	comm, args, state         string
	utime, stime, start       uint64
	prio, nice, threads       int
	vsize, rss                uint64 // kB
	cpu                       int
}

func readProcess(pid int) (psProcess, bool) {
	p := psProcess{pid: pid}
	dir := "/proc/" + strconv.Itoa(pid) + "/"
	stat, err := os.ReadFile(dir + "stat")
	if err != nil {
		return p, false
	}
	open, end := strings.IndexByte(string(stat), '('), strings.LastIndexByte(string(stat), ')')
	if open < 0 || end < open {
		return p, false
	}
	p.comm = string(stat[open+1 : end])
	f := strings.Fields(string(stat[end+1:])) // f[0] is field 3 of proc(5)
	if len(f) < 37 {
		return p, false
	}
	num := func(i int) uint64 { n, _ := strconv.ParseInt(f[i-3], 10, 64); return uint64(n) }
	p.state, p.ppid, p.pgid, p.sid, p.tty = f[0], int(num(4)), int(num(5)), int(num(6)), int(num(7))
	p.utime, p.stime, p.prio, p.nice, p.threads, p.start = num(14), num(15), int(num(18)), int(num(19)), int(num(20)), num(22)
	p.vsize, p.rss, p.cpu = num(23)/1024, num(24)*uint64(os.Getpagesize())/1024, int(num(39))
	status, err := os.ReadFile(dir + "status")
	if err != nil {
		return p, false
	}
	for line := range strings.Lines(string(status)) {
		if f := strings.Fields(line); len(f) > 2 && f[0] == "Uid:" {
			p.uid, _ = strconv.Atoi(f[2])
		} else if len(f) > 2 && f[0] == "Gid:" {
			p.gid, _ = strconv.Atoi(f[2])
		}
	}
	cmdline, err := os.ReadFile(dir + "cmdline")
	if err != nil {
		return p, false
	}
	p.args = strings.TrimSpace(strings.ReplaceAll(string(cmdline), "\x00", " "))
	if p.args == "" {
		p.args = "[" + p.comm + "]"
	}
	return p, true
}

func (p *psProcess) started(h *psHost) time.Time {
	return h.boot.Add(time.Duration(p.start) * time.Second / ticks)
}

func (p *psProcess) user(h *psHost) string {
	if name, ok := h.users[p.uid]; ok {
		return name
	}
	return strconv.Itoa(p.uid)
}

func (p *psProcess) terminal() string {
	major, minor := p.tty>>8&0xfff, p.tty&0xff|p.tty>>12&0xfff00
	switch {
	case p.tty == 0:
		return "?"
	case major >= 136 && major <= 143:
		return "pts/" + strconv.Itoa((major-136)*256+minor)
	case major == 4:
		return "tty" + strconv.Itoa(minor)
	}
	return "?"
}

// percent of one processor since the process began.
func (p *psProcess) percent(h *psHost) float64 {
	age := h.now.Sub(p.started(h)).Seconds()
	if age <= 0 {
		return 0
	}
	return 100 * float64(p.utime+p.stime) / ticks / age
}

func clock(sec uint64, hours bool) string {
	two := func(n uint64) string {
		if n < 10 {
			return "0" + strconv.FormatUint(n, 10)
		}
		return strconv.FormatUint(n, 10)
	}
	if !hours {
		return strconv.FormatUint(sec/60, 10) + ":" + two(sec%60)
	}
	s := two(sec/3600%24) + ":" + two(sec/60%60) + ":" + two(sec%60)
	if days := sec / 86400; days > 0 {
		s = strconv.FormatUint(days, 10) + "-" + s
	}
	return s
}

func elapsed(sec uint64) string {
	if sec < 3600 {
		s := clock(sec, true)
		return s[3:]
	}
	return clock(sec, true)
}

// psColumn is one column of ps.
type psColumn struct {
	title string
	show  func(p *psProcess, h *psHost) string
}

func num10(n int) string { return strconv.Itoa(n) }

func percent(v float64) string { return strconv.FormatFloat(v, 'f', 1, 64) }

// psWords are the columns by the names that ps -o takes.
var psWords = map[string]psColumn{
	"pid":   {"PID", func(p *psProcess, _ *psHost) string { return num10(p.pid) }},
	"ppid":  {"PPID", func(p *psProcess, _ *psHost) string { return num10(p.ppid) }},
	"pgid":  {"PGID", func(p *psProcess, _ *psHost) string { return num10(p.pgid) }},
	"sid":   {"SID", func(p *psProcess, _ *psHost) string { return num10(p.sid) }},
	"uid":   {"UID", func(p *psProcess, _ *psHost) string { return num10(p.uid) }},
	"gid":   {"GID", func(p *psProcess, _ *psHost) string { return num10(p.gid) }},
	"user":  {"USER", func(p *psProcess, h *psHost) string { return p.user(h) }},
	"euser": {"EUSER", func(p *psProcess, h *psHost) string { return p.user(h) }},
	"group": {"GROUP", func(p *psProcess, h *psHost) string {
		if name, ok := h.groups[p.gid]; ok {
			return name
		}
		return num10(p.gid)
	}},
	"comm": {"COMMAND", func(p *psProcess, _ *psHost) string { return p.comm }},
	"args": {"COMMAND", func(p *psProcess, _ *psHost) string { return p.args }},
	"cmd":  {"CMD", func(p *psProcess, _ *psHost) string { return p.args }},
	"c":    {"C", func(p *psProcess, h *psHost) string { return num10(min(99, int(p.percent(h)))) }},
	"pcpu": {"%CPU", func(p *psProcess, h *psHost) string { return percent(p.percent(h)) }},
	"pmem": {"%MEM", func(p *psProcess, h *psHost) string { return percent(100 * float64(p.rss) / float64(max(1, h.memory))) }},
	"vsz":  {"VSZ", func(p *psProcess, _ *psHost) string { return strconv.FormatUint(p.vsize, 10) }},
	"rss":  {"RSS", func(p *psProcess, _ *psHost) string { return strconv.FormatUint(p.rss, 10) }},
	"tty":  {"TTY", func(p *psProcess, _ *psHost) string { return p.terminal() }},
	"s":    {"S", func(p *psProcess, _ *psHost) string { return p.state }},
	"stat": {"STAT", func(p *psProcess, _ *psHost) string { return p.flags() }},
	"stime": {"STIME", func(p *psProcess, h *psHost) string {
		return begun(p.started(h), h.now)
	}},
	"start": {"STARTED", func(p *psProcess, h *psHost) string { return p.started(h).Format("15:04:05") }},
	"lstart": {"STARTED", func(p *psProcess, h *psHost) string {
		return p.started(h).Format("Mon Jan _2 15:04:05 2006")
	}},
	"time":    {"TIME", func(p *psProcess, _ *psHost) string { return clock((p.utime+p.stime)/ticks, true) }},
	"bsdtime": {"TIME", func(p *psProcess, _ *psHost) string { return clock((p.utime+p.stime)/ticks, false) }},
	"etime": {"ELAPSED", func(p *psProcess, h *psHost) string {
		return elapsed(uint64(max(0, h.now.Sub(p.started(h)).Seconds())))
	}},
	"etimes": {"ELAPSED", func(p *psProcess, h *psHost) string {
		return num10(int(max(0, h.now.Sub(p.started(h)).Seconds())))
	}},
	"ni":   {"NI", func(p *psProcess, _ *psHost) string { return num10(p.nice) }},
	"pri":  {"PRI", func(p *psProcess, _ *psHost) string { return num10(39 - p.prio) }},
	"nlwp": {"NLWP", func(p *psProcess, _ *psHost) string { return num10(p.threads) }},
	"psr":  {"PSR", func(p *psProcess, _ *psHost) string { return num10(p.cpu) }},
}

// flags are the letters of ps's STAT.
func (p *psProcess) flags() string {
	s := p.state
	if p.nice < 0 {
		s += "<"
	} else if p.nice > 0 {
		s += "N"
	}
	if p.sid == p.pid {
		s += "s"
	}
	if p.threads > 1 {
		s += "l"
	}
	return s
}

func begun(t, now time.Time) string {
	if now.Sub(t) < 24*time.Hour {
		return t.Format("15:04")
	}
	return t.Format("Jan02")
}

var psAlias = map[string]string{
	"%cpu": "pcpu", "%mem": "pmem", "command": "args", "ucmd": "comm", "ucomm": "comm", "tt": "tty", "tname": "tty", "state": "s", "nice": "ni", "cputime": "time", "thcount": "nlwp", "pgrp": "pgid",
	"sess": "sid", "session": "sid", "vsize": "vsz", "rssize": "rss", "rsz": "rss", "uname": "user", "ruser": "user", "euid": "uid", "ruid": "uid", "egid": "gid", "egroup": "group", "rgroup": "group",
	"start_time": "stime", "bsdstart": "stime",
}

// psColumns reads the arguments of ps that make sense for a given set of processes.
func psColumns(args []string) ([]psColumn, error) {
	pick := func(words string, titles map[string]string) []psColumn {
		var list []psColumn
		for _, w := range strings.Fields(words) {
			col := psWords[w]
			if t := titles[w]; t != "" {
				col.title = t
			}
			list = append(list, col)
		}
		return list
	}
	args = strings.Fields(strings.Join(args, " "))
	var chosen []psColumn
	form := "ef"
	for i := 0; i < len(args); i++ {
		arg := args[i]
		spec, isO := "", false
		switch {
		case arg == "-o" || arg == "o" || arg == "-eo" || arg == "-axo" || arg == "axo" || arg == "--format":
			if i++; i == len(args) {
				return nil, errs.New(errs.Invalid, "ps: option %s needs a list of columns", arg)
			}
			spec, isO = args[i], true
		case strings.HasPrefix(arg, "-o"):
			spec, isO = arg[2:], true
		case strings.HasPrefix(arg, "--format="):
			spec, isO = arg[9:], true
		}
		if isO {
			for _, word := range strings.Split(spec, ",") {
				name, title, renamed := strings.Cut(word, "=")
				name = strings.ToLower(name)
				if alias, ok := psAlias[name]; ok {
					name = alias
				}
				col, ok := psWords[name]
				if !ok {
					return nil, errs.New(errs.Invalid, "ps: column %q is not supported", word)
				}
				if renamed {
					col.title = title
				}
				chosen = append(chosen, col)
			}
			continue
		}
		switch strings.TrimPrefix(arg, "-") {
		case "ef", "f", "e", "A", "eF", "ww", "efww", "w":
		case "aux", "axu", "u", "auxww", "auxf":
			form = "aux"
		case "ax", "a", "x":
			form = "ax"
		case "l", "el", "elf", "lf":
			form = "l"
		default:
			return nil, errs.New(errs.Invalid, "ps: option %q is not supported; -ef, aux, ax, -l and -o with a list of columns are", arg)
		}
	}
	switch {
	case chosen != nil:
		return chosen, nil
	case form == "aux":
		return pick("user pid pcpu pmem vsz rss tty stat stime bsdtime args", map[string]string{"stime": "START"}), nil
	case form == "ax":
		return pick("pid tty stat bsdtime args", nil), nil
	case form == "l":
		return pick("s uid pid ppid c pri ni vsz tty time cmd", nil), nil
	}
	return pick("euser pid ppid c stime tty time cmd", map[string]string{"euser": "UID"}), nil
}
