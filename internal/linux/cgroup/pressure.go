package cgroup

import "bytes"

// Pressure is for how long tasks had to wait for a resource, in ns since the cgroup was made (Documentation/accounting/psi.rst). Known is false where the kernel does not count it: without CONFIG_PSI, with psi=0,
// and for cgroups that are in no v2 tree.
type Pressure struct {
	Some, Full uint64 // some task waited; all of them did
	Known      bool
}

// pressures reads the three files of a v2 cgroup. They rarely matter to the second, and cost as much as all other figures: a [Meter] reads them when it reads limits.
func (m *Manager) pressures(r *reader, st *Stats) {
	if m.v2 == "" {
		return
	}
	if r.last != nil {
		st.CPU.Pressure, st.Memory.Pressure, st.Blkio.Pressure = r.last.CPU.Pressure, r.last.Memory.Pressure, r.last.Blkio.Pressure
		return
	}
	st.CPU.Pressure = parsePressure(r.bytes(m.v2, "cpu.pressure"))
	st.Memory.Pressure = parsePressure(r.bytes(m.v2, "memory.pressure"))
	st.Blkio.Pressure = parsePressure(r.bytes(m.v2, "io.pressure"))
}

// parsePressure reads lines as "some avg10=0.00 avg60=0.00 avg300=0.00 total=12345", in µs.
func parsePressure(b []byte) (p Pressure) {
	for line := range bytes.Lines(b) {
		kind, rest, _ := bytes.Cut(line, []byte{' '})
		_, total, ok := bytes.Cut(rest, []byte("total="))
		if !ok {
			continue
		}
		switch string(kind) {
		case "some":
			p.Some, p.Known = parseUint(total)*1000, true
		case "full":
			p.Full, p.Known = parseUint(total)*1000, true
		}
	}
	return p
}
