package volume

import (
	"bufio"
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/errs"
)

// What mount.nfs and mount.cifs do before they ask the kernel is done here: the kernel's clients take addresses as numbers, and secrets as options.

// outside is what the options of a network file system are completed by.
type outside struct {
	// lookup finds the address of a host.
	lookup func(ctx context.Context, host string) (netip.Addr, error)
	// local finds the address of ours from which another is reached.
	local func(to netip.Addr) (netip.Addr, error)
	// read reads a file of credentials.
	read func(path string) ([]byte, error)
}

func theHost() outside { return outside{lookup: lookupHost, local: localAddr, read: os.ReadFile} }

func (mo *mountOptions) isNFS() bool  { return mo.fstype == "nfs" || mo.fstype == "nfs4" }
func (mo *mountOptions) isCIFS() bool { return mo.fstype == "cifs" || mo.fstype == "smb3" }

// complete finds what a network file system needs besides: the server's address; the client's, for the callbacks of NFS 4.0; what a file of credentials says.
func (mo *mountOptions) complete(ctx context.Context, out outside) error {
	if mo.isCIFS() {
		if err := mo.credentials(out); err != nil {
			return err
		}
	}
	if !mo.isNFS() && !mo.isCIFS() {
		return nil
	}
	server, err := mo.resolve(ctx, out)
	if err != nil || !mo.isNFS() {
		return err
	}
	for i, o := range mo.data { // of the mount protocol of NFS 3
		if key, val, _ := strings.Cut(o, "="); key == "mountaddr" || key == "mounthost" {
			addr, err := find(ctx, out, val)
			if err != nil {
				return err
			}
			mo.data[i] = "mountaddr=" + addr.String()
		}
	}
	if !server.IsValid() || !mo.callsBack() {
		return nil
	}
	addr, err := out.local(server)
	if err != nil {
		return errs.New(errs.Unavailable, "find the address from which %s is reached: %w", server, err)
	}
	mo.data = append(mo.data, "clientaddr="+addr.String())
	return nil
}

// callsBack tells whether the server opens connections to the client: NFS 4.0. Later ones use the client's own connection.
func (mo *mountOptions) callsBack() bool {
	version, minor := "", ""
	for _, o := range mo.data {
		switch key, val, _ := strings.Cut(o, "="); key {
		case "vers", "nfsvers":
			version = val
		case "minorversion":
			minor = val
		case "clientaddr":
			return false
		}
	}
	return version == "4.0" || (version == "4" || version == "" && mo.fstype == "nfs4") && minor == "0"
}

// resolve finds the address of the server, in the options or in the device.
func (mo *mountOptions) resolve(ctx context.Context, out outside) (netip.Addr, error) {
	for i, o := range mo.data {
		key, val, _ := strings.Cut(o, "=")
		if key != "addr" && key != "ip" || val == "" {
			continue
		}
		addr, err := find(ctx, out, val)
		if err == nil {
			mo.data[i] = key + "=" + addr.String()
		}
		return addr, err
	}
	host := ""
	if mo.isCIFS() {
		host, _, _ = strings.Cut(strings.TrimPrefix(mo.device, "//"), "/")
	} else {
		host, _, _ = strings.Cut(mo.device, ":/")
	}
	host = strings.Trim(host, "[]")
	if host == "" || host == mo.device {
		return netip.Addr{}, errs.New(errs.Invalid, "no server in the device %q and no address in the options: want SERVER:/PATH (nfs) or //SERVER/SHARE (cifs), or o=addr=ADDRESS", mo.device)
	}
	addr, err := find(ctx, out, host)
	if err == nil {
		mo.data = append(mo.data, "addr="+addr.String())
	}
	return addr, err
}

func find(ctx context.Context, out outside, host string) (netip.Addr, error) {
	if addr, err := netip.ParseAddr(host); err == nil {
		return addr, nil
	}
	addr, err := out.lookup(ctx, host)
	if err != nil {
		return addr, errs.New(errs.Unavailable, "find the address of %s: %w", host, err)
	}
	return addr, nil
}

// credentials reads the file that credentials=PATH names, in the form of mount.cifs(8), in place of the option.
func (mo *mountOptions) credentials(out outside) error {
	var data []string
	for _, o := range mo.data {
		key, path, _ := strings.Cut(o, "=")
		if key != "credentials" && key != "cred" {
			data = append(data, o)
			continue
		}
		b, err := out.read(path)
		if err != nil {
			return errs.New(errs.Invalid, "credentials of %s: %w", mo.device, err)
		}
		lines := bufio.NewScanner(strings.NewReader(string(b)))
		for lines.Scan() {
			key, val, ok := strings.Cut(strings.TrimSpace(lines.Text()), "=")
			key = strings.TrimSpace(key)
			switch {
			case !ok || strings.HasPrefix(key, "#"):
				continue
			case strings.ContainsRune(val, 0):
				return errs.New(errs.Invalid, "credentials of %s: %s has a zero byte", mo.device, key)
			case key == "username" || key == "user":
				data = append(data, "username="+val)
			case key == "password" || key == "pass":
				data = append(data, "password="+strings.ReplaceAll(val, ",", ",,")) // the kernel's way to write a comma
			case key == "domain" || key == "dom":
				data = append(data, "domain="+val)
			}
		}
	}
	mo.data = data
	return nil
}

// shown are the options for messages, without secrets.
func (mo *mountOptions) shown() string {
	list := make([]string, len(mo.data))
	for i, o := range mo.data {
		if key, _, _ := strings.Cut(o, "="); secretWords[key] {
			o = key + "=xxxxx"
		}
		list[i] = o
	}
	return strings.Join(list, ",")
}

// features are what the kernel must have been built with for a file system.
var features = map[string]string{
	"nfs": "CONFIG_NFS_FS, module nfs", "nfs4": "CONFIG_NFS_V4, module nfsv4", "cifs": "CONFIG_CIFS, module cifs", "smb3": "CONFIG_CIFS, module cifs",
	"ext4": "CONFIG_EXT4_FS, module ext4", "xfs": "CONFIG_XFS_FS, module xfs", "btrfs": "CONFIG_BTRFS_FS, module btrfs",
}

// explain names what the kernel lacks, where that is what its answer means.
func (mo *mountOptions) explain(err error) error {
	if !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.EPROTONOSUPPORT) {
		return err
	}
	need := features[mo.fstype]
	if need == "" {
		return errs.New(errs.NotImplemented, "the kernel knows no file system %q: %w", mo.fstype, err)
	}
	return errs.New(errs.NotImplemented, "the kernel knows no file system %q (%s): %w", mo.fstype, need, err)
}

// lookupHost asks the host's resolver.
func lookupHost(ctx context.Context, host string) (netip.Addr, error) {
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return netip.Addr{}, err
	}
	for _, a := range addrs {
		if a.Unmap().Is4() {
			return a.Unmap(), nil
		}
	}
	return addrs[0], nil
}

// localAddr asks the kernel's routes; nothing is sent.
func localAddr(to netip.Addr) (netip.Addr, error) {
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, 2049)))
	if err != nil {
		return netip.Addr{}, err
	}
	defer conn.Close()
	from, ok := netip.AddrFromSlice(conn.LocalAddr().(*net.UDPAddr).IP)
	if !ok {
		return from, errors.New("the kernel names no address")
	}
	return from.Unmap(), nil
}
