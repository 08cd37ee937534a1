package containers

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"corten.dev/corten/internal/container"
	"corten.dev/corten/internal/engine/hostspec"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/network"
)

// generatedFiles are the three files that every container gets, in its own folder or in that of the container whose network it shares, which may share another's.
func (s *Service) generatedFiles(rec *container.Record) hostspec.Files {
	dir := s.dir(rec.ID)
	for ref, ok := strings.CutPrefix(rec.Host.NetworkMode, "container:"); ok; ref, ok = strings.CutPrefix(rec.Host.NetworkMode, "container:") {
		other, err := s.find(ref) // made before this one, always: the mode has its id
		if err != nil {
			break
		}
		rec, dir = other.record(), s.dir(other.id)
	}
	return hostspec.Files{ResolvConf: filepath.Join(dir, "resolv.conf"), Hosts: filepath.Join(dir, "hosts"), Hostname: filepath.Join(dir, "hostname")}
}

// writeGenerated writes the three files anew for a run. Their inodes stay, because bind mounts of them may be open elsewhere.
func (s *Service) writeGenerated(rec *container.Record, sb *network.Sandbox) error {
	files := s.generatedFiles(rec)
	if strings.HasPrefix(rec.Host.NetworkMode, "container:") {
		return nil // they belong to the other container
	}
	hosts, err := s.hostsFile(rec, sb)
	if err != nil {
		return err
	}
	hostname := rec.Config.Hostname
	if err := overwrite(files.Hostname, []byte(hostname+"\n")); err != nil {
		return err
	}
	if err := overwrite(files.Hosts, hosts); err != nil {
		return err
	}
	return overwrite(files.ResolvConf, sb.ResolvConf)
}

func (s *Service) hostsFile(rec *container.Record, sb *network.Sandbox) ([]byte, error) {
	var b bytes.Buffer
	if rec.Host.NetworkMode == "host" {
		host, err := os.ReadFile("/etc/hosts")
		if err != nil && !os.IsNotExist(err) {
			return nil, err
		}
		b.Write(host)
		if n := len(host); n > 0 && host[n-1] != '\n' {
			b.WriteByte('\n')
		}
	} else {
		b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\nff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n")
	}
	for _, extra := range rec.Host.ExtraHosts {
		name, addr, _ := cutHost(extra)
		if addr == "host-gateway" {
			gw := s.Networks.HostGateway()
			if !gw.IsValid() {
				return nil, errs.New(errs.Unavailable, "unable to derive the IP value for host-gateway")
			}
			addr = gw.String()
		}
		if _, err := netip.ParseAddr(addr); err != nil {
			return nil, errs.New(errs.Invalid, "invalid IP address in add-host: %q", addr)
		}
		fmt.Fprintf(&b, "%s\t%s\n", addr, name)
	}
	if err := s.linkHosts(rec, &b); err != nil {
		return nil, err
	}
	writeHosts(&b, rec, sb.Endpoints)
	return b.Bytes(), nil
}

// writeHosts writes the container's own names for its addresses.
func writeHosts(b *bytes.Buffer, rec *container.Record, endpoints []network.Endpoint) {
	names := rec.Config.Hostname
	if short, _, dotted := strings.Cut(names, "."); dotted {
		names += " " + short
	} else if rec.Config.Domainname != "" {
		names = names + "." + rec.Config.Domainname + " " + names
	}
	for _, ep := range endpoints {
		if ep.WayOut { // as Docker: nobody asked for it
			continue
		}
		for _, addr := range []netip.Prefix{ep.IPv4, ep.IPv6} {
			if addr.IsValid() {
				fmt.Fprintf(b, "%s\t%s\n", addr.Addr(), names)
			}
		}
	}
}

// editHosts changes a running container's hosts file from the addresses that it had to those that it has; what the program wrote there stays.
func (s *Service) editHosts(rec *container.Record, before *network.Sandbox) error {
	var old, now bytes.Buffer
	writeHosts(&old, rec, before.Endpoints)
	writeHosts(&now, rec, rec.Sandbox.Endpoints)
	gone := map[string]bool{}
	for line := range bytes.Lines(old.Bytes()) {
		gone[string(line)] = true
	}
	return s.changeHosts(rec, func(line []byte) []byte {
		if gone[string(line)] {
			return nil
		}
		return line
	}, now.Bytes())
}

// changeHosts changes a running container's hosts file line by line, and appends to it. It is changed in place: the container has this very file mounted.
func (s *Service) changeHosts(rec *container.Record, change func(line []byte) []byte, more []byte) error {
	s.links.files.Lock()
	defer s.links.files.Unlock()
	path := s.generatedFiles(rec).Hosts
	have, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var b bytes.Buffer
	for line := range bytes.Lines(have) {
		b.Write(change(line))
	}
	b.Write(more)
	if bytes.Equal(b.Bytes(), have) {
		return nil
	}
	return overwrite(path, b.Bytes())
}

// overwrite gives a file that others have open or mounted new content, without it being empty in between, also when the disk is full.
func overwrite(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(b, 0)
	if err == nil {
		err = f.Truncate(int64(len(b)))
	}
	return errors.Join(err, f.Close())
}

// editResolvConf renews a running container's resolv.conf: on its first network of its own, the embedded name server comes in, and with the last one it goes. A file that
// the program wrote anew is its own.
func (s *Service) editResolvConf(rec *container.Record, before *network.Sandbox) error {
	if bytes.Equal(before.ResolvConf, rec.Sandbox.ResolvConf) {
		return nil
	}
	path := s.generatedFiles(rec).ResolvConf
	have, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(have, before.ResolvConf) {
		return err
	}
	return overwrite(path, rec.Sandbox.ResolvConf)
}
