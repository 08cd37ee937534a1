package wire

// The exit record, a small text file:
//
//	corten-exit 1
//	code 137
//	signal 9
//	time 1732236787123456789
//	oom 1
//	end
//
// The last line tells a whole record from a torn one.

const exitMagic = "corten-exit 1\n"

// AppendExit writes the exit that m tells as text.
func AppendExit(b []byte, m *Message) []byte {
	b = append(b, exitMagic...)
	oom := int64(0)
	if m.Exit&OOMKilled != 0 {
		oom = 1
	}
	for _, f := range [...]struct {
		name  string
		value int64
	}{{"code ", int64(m.Code)}, {"signal ", int64(m.Signal)}, {"time ", m.Time}, {"oom ", oom}} {
		b = append(b, f.name...)
		b = appendInt(b, f.value)
		b = append(b, '\n')
	}
	return append(b, "end\n"...)
}

func appendInt(b []byte, v int64) []byte {
	if v < 0 {
		b, v = append(b, '-'), -v
	}
	var d [20]byte
	i := len(d)
	for {
		i--
		d[i] = byte('0' + v%10)
		if v /= 10; v == 0 {
			return append(b, d[i:]...)
		}
	}
}

// ParseExit reads the text back; ok is false when it is torn or of another kind.
func ParseExit(b []byte) (m Message, ok bool) {
	if len(b) < len(exitMagic) || string(b[:len(exitMagic)]) != exitMagic {
		return m, false
	}
	b = b[len(exitMagic):]
	seen := 0
	for len(b) > 0 {
		i := 0
		for i < len(b) && b[i] != '\n' {
			i++
		}
		if i == len(b) {
			return m, false
		}
		line := b[:i]
		b = b[i+1:]
		if string(line) == "end" {
			return m, seen == 4 && len(b) == 0
		}
		j := 0
		for j < len(line) && line[j] != ' ' {
			j++
		}
		if j == len(line) {
			return m, false
		}
		v, good := parseInt(line[j+1:])
		if !good {
			return m, false
		}
		seen++
		switch string(line[:j]) {
		case "code":
			m.Code, good = uint8(v), v >= 0 && v <= 255
		case "signal":
			m.Signal, good = uint8(v), v >= 0 && v <= 64
		case "time":
			m.Time = v
		case "oom":
			if v != 0 {
				m.Exit |= OOMKilled
			}
		default:
			seen-- // a later version's
		}
		if !good {
			return m, false
		}
	}
	return m, false
}

func parseInt(b []byte) (v int64, ok bool) {
	neg := len(b) > 0 && b[0] == '-'
	if neg {
		b = b[1:]
	}
	if len(b) == 0 || len(b) > 19 {
		return 0, false
	}
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, false
		}
		if v = v*10 + int64(c-'0'); v < 0 {
			return 0, false
		}
	}
	if neg {
		v = -v
	}
	return v, true
}

// OOMKills finds the number in the line "oom_kill N" of a cgroup's memory.events or memory.oom_control; -1 when it is not there.
func OOMKills(b []byte) int64 {
	const key = "oom_kill "
	for i := 0; i+len(key) <= len(b); i++ {
		if (i == 0 || b[i-1] == '\n') && string(b[i:i+len(key)]) == key {
			j := i + len(key)
			k := j
			for k < len(b) && b[k] >= '0' && b[k] <= '9' {
				k++
			}
			if v, ok := parseInt(b[j:k]); ok {
				return v
			}
		}
	}
	return -1
}
