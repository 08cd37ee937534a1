package cli

import (
	"fmt"

	"github.com/spf13/pflag"

	"corten.dev/corten/internal/cli/parse"
)

// ctrFlags are the flags that run and create share. toRequest (ctrconfig.go) turns them into the API's words.
type ctrFlags struct {
	attach, env, envFile, label, labelFile                       []string
	addHost, dns, dnsOption, dnsSearch, link, linkLocalIP        []string
	network, networkAlias, publish, expose                       []string
	volume, volumesFrom, mount, tmpfs, storageOpt                []string
	mounts                                                       []parse.Mounted // what mount says
	device, deviceRule, ulimit, gpus                             []string
	blkioWeightDevice, readBps, writeBps, readIOps, writeIOps    []string
	capAdd, capDrop, groupAdd, securityOpt, logOpt               []string
	sysctl, annotation                                           []string
	name, hostname, domainname, user, workdir, entrypoint        string
	ip, ip6, mac, pid, ipc, uts, userns, cgroupns, cgroupParent  string
	memory, memorySwap, memoryReservation, kernelMemory, shmSize string
	cpus, cpusetCpus, cpusetMems, ioMaxBandwidth                 string
	restart, stopSignal, logDriver, runtime, isolation, volDrv   string
	platform, pull, cidfile                                      string
	health                                                       healthFlags
	netLimits                                                    netLimitFlags
	stopTimeout, oomScore                                        int
	cpuShares, cpuPeriod, cpuQuota, cpuRtPeriod, cpuRtRuntime    int64
	cpuCount, cpuPercent, swappiness, pidsLimit                  int64
	blkioWeight                                                  uint16
	ioMaxIOps                                                    uint64
	tty, interactive, privileged, readOnly, initProc, rm         bool
	publishAll, oomKillDisable, quiet                            bool
	contentTrust, useAPISocket                                   bool
}

// list registers a flag that may be given many times; its values are kept as they are.
func list(f *pflag.FlagSet, p *[]string, name, short, usage string) {
	f.StringArrayVarP(p, name, short, nil, usage)
}

func (o *ctrFlags) register(f *pflag.FlagSet) {
	o.registerProcess(f)
	o.registerNetwork(f)
	o.registerStorage(f)
	o.registerLimits(f)
	o.registerIsolation(f)
}

func (o *ctrFlags) registerProcess(f *pflag.FlagSet) {
	list(f, &o.attach, "attach", "a", "attach to STDIN, STDOUT or STDERR")
	list(f, &o.env, "env", "e", "set an environment variable; NAME alone takes the client's own value")
	list(f, &o.envFile, "env-file", "", "read environment variables from a file")
	list(f, &o.label, "label", "l", "add a label, name[=value]")
	list(f, &o.labelFile, "label-file", "", "read labels from a file")
	f.StringVar(&o.name, "name", "", "name of the container")
	f.StringVarP(&o.user, "user", "u", "", "user to run as: <name|uid>[:<group|gid>]")
	f.StringVarP(&o.workdir, "workdir", "w", "", "working directory inside the container")
	f.StringVar(&o.entrypoint, "entrypoint", "", "replace the image's entrypoint")
	f.BoolVarP(&o.tty, "tty", "t", false, "give the command a terminal")
	f.BoolVarP(&o.interactive, "interactive", "i", false, "keep STDIN open even if not attached")
	f.BoolVar(&o.rm, "rm", false, "remove the container and its anonymous volumes when it ends")
	f.BoolVar(&o.initProc, "init", false, "run an init as first process that forwards signals and reaps")
	f.StringVar(&o.restart, "restart", "no", "what to do when the container ends: no, always, unless-stopped, on-failure[:max-retries], on-unhealthy[:max-restarts]")
	f.StringVar(&o.stopSignal, "stop-signal", "", "signal that asks the container to stop")
	f.IntVar(&o.stopTimeout, "stop-timeout", 0, "seconds to wait for that before killing it")
	f.StringVar(&o.logDriver, "log-driver", "", "log driver, or several with commas between them (json-file,syslog)")
	list(f, &o.logOpt, "log-opt", "", "log driver option, name=value (driver.name=value for one of several)")
	f.StringVar(&o.cidfile, "cidfile", "", "write the container's ID to this file")
	f.StringVar(&o.platform, "platform", "", "platform of the image, os[/arch[/variant]]")
	f.StringVar(&o.pull, "pull", "missing", `pull the image before: "always", "missing" or "never"`)
	f.BoolVarP(&o.quiet, "quiet", "q", false, "do not show the progress of the pull")
	f.BoolVar(&o.contentTrust, "disable-content-trust", true, "skip image verification")
	f.BoolVar(&o.useAPISocket, "use-api-socket", false, "give the container the engine's socket")
	list(f, &o.annotation, "annotation", "", "annotation for the OCI runtime, name=value")
	o.health.register(f)
	o.netLimits.register(f)
}

func (o *ctrFlags) registerNetwork(f *pflag.FlagSet) {
	list(f, &o.network, "network", "", "network to join: a name, host, none, container:<name|id>, or name=…,alias=…,ip=… options")
	list(f, &o.network, "net", "", "same as --network")
	list(f, &o.networkAlias, "network-alias", "", "further name in the network")
	list(f, &o.networkAlias, "net-alias", "", "same as --network-alias")
	f.MarkHidden("net")
	f.MarkHidden("net-alias")
	list(f, &o.publish, "publish", "p", "publish a port: [address:][host-port:]container-port[/protocol]")
	f.BoolVarP(&o.publishAll, "publish-all", "P", false, "publish all exposed ports on random ports")
	list(f, &o.expose, "expose", "", "expose a port or a range of ports")
	f.StringVarP(&o.hostname, "hostname", "h", "", "host name of the container")
	f.StringVar(&o.domainname, "domainname", "", "NIS domain name of the container")
	list(f, &o.addHost, "add-host", "", "add a line to /etc/hosts, host:ip; the ip may be host-gateway")
	list(f, &o.dns, "dns", "", "DNS server")
	list(f, &o.dnsOption, "dns-option", "", "DNS option")
	list(f, &o.dnsOption, "dns-opt", "", "same as --dns-option")
	f.MarkHidden("dns-opt")
	list(f, &o.dnsSearch, "dns-search", "", "DNS search domain")
	f.StringVar(&o.ip, "ip", "", "IPv4 address of the container")
	f.StringVar(&o.ip6, "ip6", "", "IPv6 address of the container")
	f.StringVar(&o.mac, "mac-address", "", "MAC address of the container")
	list(f, &o.link, "link", "", "link to another container, name[:alias]")
	list(f, &o.linkLocalIP, "link-local-ip", "", "link-local address of the container")
}

func (o *ctrFlags) registerStorage(f *pflag.FlagSet) {
	list(f, &o.volume, "volume", "v", "mount a volume or a host path: [name|path:]path[:ro,z,Z,U,nocopy,idmap,rslave,…]")
	list(f, &o.mount, "mount", "", "mount something: type=bind|volume|tmpfs|image,src=…,dst=…[,ro,idmap,chown,…]")
	list(f, &o.tmpfs, "tmpfs", "", "mount an empty file system in memory: path[:options]")
	list(f, &o.volumesFrom, "volumes-from", "", "take the mounts of another container, name[:ro|rw]")
	f.StringVar(&o.volDrv, "volume-driver", "", "driver for volumes made by -v")
	list(f, &o.storageOpt, "storage-opt", "", "option of the storage driver, name=value")
	f.BoolVar(&o.readOnly, "read-only", false, "make the container's root file system read-only")
	f.StringVar(&o.shmSize, "shm-size", "", "size of /dev/shm")
}

func (o *ctrFlags) registerLimits(f *pflag.FlagSet) {
	f.StringVarP(&o.memory, "memory", "m", "", "memory limit")
	f.StringVar(&o.memorySwap, "memory-swap", "", "limit of memory plus swap; -1 for unlimited swap")
	f.StringVar(&o.memoryReservation, "memory-reservation", "", "soft memory limit")
	f.StringVar(&o.kernelMemory, "kernel-memory", "", "kernel memory limit (gone from Linux)")
	f.Int64Var(&o.swappiness, "memory-swappiness", -1, "readiness to swap, 0 to 100")
	f.BoolVar(&o.oomKillDisable, "oom-kill-disable", false, "do not kill when memory runs out")
	f.IntVar(&o.oomScore, "oom-score-adj", 0, "preference of the host's OOM killer, -1000 to 1000")
	f.StringVar(&o.cpus, "cpus", "", "number of CPUs, a decimal")
	f.Int64VarP(&o.cpuShares, "cpu-shares", "c", 0, "relative CPU weight")
	f.Int64Var(&o.cpuPeriod, "cpu-period", 0, "CFS period in microseconds")
	f.Int64Var(&o.cpuQuota, "cpu-quota", 0, "CFS quota in microseconds")
	f.Int64Var(&o.cpuRtPeriod, "cpu-rt-period", 0, "real-time period in microseconds")
	f.Int64Var(&o.cpuRtRuntime, "cpu-rt-runtime", 0, "real-time runtime in microseconds")
	f.StringVar(&o.cpusetCpus, "cpuset-cpus", "", "CPUs to run on (0-3, 0,1)")
	f.StringVar(&o.cpusetMems, "cpuset-mems", "", "memory nodes to use (0-3, 0,1)")
	f.Int64Var(&o.cpuCount, "cpu-count", 0, "CPU count (Windows)")
	f.Int64Var(&o.cpuPercent, "cpu-percent", 0, "CPU percent (Windows)")
	f.Uint64Var(&o.ioMaxIOps, "io-maxiops", 0, "most I/O operations per second (Windows)")
	f.StringVar(&o.ioMaxBandwidth, "io-maxbandwidth", "", "most bytes per second (Windows)")
	f.Int64Var(&o.pidsLimit, "pids-limit", 0, "most processes; -1 for no limit")
	list(f, &o.ulimit, "ulimit", "", "resource limit, name=soft[:hard]")
	f.Uint16Var(&o.blkioWeight, "blkio-weight", 0, "block I/O weight, 10 to 1000, 0 for none")
	list(f, &o.blkioWeightDevice, "blkio-weight-device", "", "block I/O weight of a device, path:weight")
	list(f, &o.readBps, "device-read-bps", "", "bytes per second to read from a device, path:rate")
	list(f, &o.writeBps, "device-write-bps", "", "bytes per second to write to a device, path:rate")
	list(f, &o.readIOps, "device-read-iops", "", "reads per second from a device, path:rate")
	list(f, &o.writeIOps, "device-write-iops", "", "writes per second to a device, path:rate")
	f.StringVar(&o.cgroupParent, "cgroup-parent", "", "parent cgroup of the container")
}

func (o *ctrFlags) registerIsolation(f *pflag.FlagSet) {
	f.BoolVar(&o.privileged, "privileged", false, "give the container all privileges")
	list(f, &o.capAdd, "cap-add", "", "add a Linux capability")
	list(f, &o.capDrop, "cap-drop", "", "drop a Linux capability")
	list(f, &o.securityOpt, "security-opt", "", "security option, name=value")
	list(f, &o.groupAdd, "group-add", "", "further group of the user")
	list(f, &o.device, "device", "", "give access to a host device: path[:path-in-container][:rwm], or a CDI name")
	list(f, &o.deviceRule, "device-cgroup-rule", "", "rule for the cgroup's list of devices")
	list(f, &o.gpus, "gpus", "", "GPUs to give: all, a number, or device=… options")
	list(f, &o.sysctl, "sysctl", "", "kernel parameter of the container, name=value")
	f.StringVar(&o.pid, "pid", "", "PID namespace: host or container:<name|id>")
	f.StringVar(&o.ipc, "ipc", "", "IPC namespace: none, private, shareable, host or container:<name|id>")
	f.StringVar(&o.uts, "uts", "", "UTS namespace: host")
	f.StringVar(&o.userns, "userns", "", "user namespace: host")
	f.StringVar(&o.cgroupns, "cgroupns", "", "cgroup namespace: host or private")
	f.StringVar(&o.runtime, "runtime", "", "OCI runtime of the container")
	f.StringVar(&o.isolation, "isolation", "", "isolation technology (Windows)")
}

// checkPull refuses what --pull does not know.
func (o *ctrFlags) checkPull() error {
	switch o.pull {
	case "always", "missing", "never", "":
		return nil
	}
	return fmt.Errorf("invalid pull option: '%s': must be one of \"always\", \"missing\" or \"never\"", o.pull)
}
