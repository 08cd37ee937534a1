package settings

import (
	"fmt"
	"strconv"
	"strings"
)

// poolFlag is --default-address-pool base=CIDR,size=BITS.
type poolFlag struct{ s *Settings }

func (f *poolFlag) Set(v string) error {
	var p AddressPool
	for part := range strings.SplitSeq(v, ",") {
		key, value, _ := strings.Cut(part, "=")
		switch key {
		case "base":
			p.Base = value
		case "size":
			n, err := strconv.Atoi(value)
			if err != nil {
				return fmt.Errorf("size %q is no number", value)
			}
			p.Size = n
		default:
			return fmt.Errorf("unknown key %q: give base=CIDR,size=BITS", key)
		}
	}
	f.s.AddressPools = append(f.s.AddressPools, p)
	return nil
}

func (f *poolFlag) String() string { return "" }
func (f *poolFlag) Type() string   { return "pool" }

// ulimitFlag is --default-ulimit name=soft[:hard].
type ulimitFlag struct{ s *Settings }

func (f *ulimitFlag) Set(v string) error {
	name, values, ok := strings.Cut(v, "=")
	soft, hard, two := strings.Cut(values, ":")
	if !two {
		hard = soft
	}
	s, err1 := strconv.ParseInt(soft, 10, 64)
	h, err2 := strconv.ParseInt(hard, 10, 64)
	if !ok || err1 != nil || err2 != nil {
		return fmt.Errorf("give name=soft[:hard]")
	}
	if f.s.Ulimits == nil {
		f.s.Ulimits = map[string]*Ulimit{}
	}
	f.s.Ulimits[name] = &Ulimit{Name: name, Soft: s, Hard: h}
	return nil
}

func (f *ulimitFlag) String() string { return "" }
func (f *ulimitFlag) Type() string   { return "ulimit" }

// optionsFlag is a flag name=value that may be given several times; a value may hold commas ("labels=a,b").
type optionsFlag struct{ to *map[string]string }

func (f *optionsFlag) Set(v string) error {
	name, value, ok := strings.Cut(v, "=")
	if !ok || name == "" {
		return fmt.Errorf("give name=value")
	}
	if *f.to == nil {
		*f.to = map[string]string{}
	}
	(*f.to)[name] = value
	return nil
}

func (f *optionsFlag) String() string { return "" }
func (f *optionsFlag) Type() string   { return "name=value" }
