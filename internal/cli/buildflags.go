package cli

import (
	"os"
	"strings"

	"github.com/docker/go-units"
	"github.com/spf13/pflag"
)

// buildFlags are the flags of docker's and buildx's build.
type buildFlags struct {
	file, target, iidfile, metadataFile, progress, network, shmSize, cgroupParent, call, builder string
	provenance, sbom, onError, policy                                                            string
	memory, memorySwap, cpusetCpus, cpusetMems, isolation                                        string
	cpuPeriod, cpuQuota, cpuShares                                                               int64
	tags, args, contexts, platforms, outputs, cacheFrom, cacheTo, secrets, ssh, hosts            []string
	ulimits, allow, labels, annotations, attests, noCacheFilter, securityOpt                     []string
	pull, noCache, push, load, quiet, check                                                      bool
	rm, forceRm, squash, compress, trust                                                         bool
}

func (o *buildFlags) register(f *pflag.FlagSet) {
	o.registerWhat(f)
	o.registerHow(f)
	o.registerClassic(f)
}

// registerWhat has the flags that say what comes out.
func (o *buildFlags) registerWhat(f *pflag.FlagSet) {
	f.StringVarP(&o.file, "file", "f", "", "the Dockerfile (default PATH/Dockerfile); - reads it from STDIN")
	list(f, &o.tags, "tag", "t", "name of the image, name[:tag]")
	list(f, &o.args, "build-arg", "", "set a variable of the build; NAME alone takes the client's own value")
	list(f, &o.contexts, "build-context", "", "further context, name=path, an address, docker-image://…, oci-layout://…")
	f.StringVar(&o.target, "target", "", "stage to build")
	f.StringSliceVar(&o.platforms, "platform", nil, "platforms to build for, os/arch[/variant]")
	list(f, &o.outputs, "output", "o", "what becomes of the result: type=image|local|tar|oci|docker|cacheonly,dest=…, or a path")
	f.BoolVar(&o.push, "push", false, "send the result to its registry: --output=type=registry")
	f.BoolVar(&o.load, "load", false, "keep the result as an image, as is done without any output")
	list(f, &o.labels, "label", "", "label of the image, name[=value]")
	list(f, &o.annotations, "annotation", "", "annotation of the image, [type[,type]:]name=value")
	list(f, &o.attests, "attest", "", "add an attestation: type=sbom|provenance,…")
	f.StringVar(&o.provenance, "provenance", "", `add provenance: true, false or "mode=max"; short for --attest=type=provenance`)
	f.StringVar(&o.sbom, "sbom", "", "add a bill of materials: true, false or its options; short for --attest=type=sbom")
	f.StringVar(&o.iidfile, "iidfile", "", "write the image's ID to this file")
	f.StringVar(&o.metadataFile, "metadata-file", "", "write what is known of the result to this file, as JSON")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "print the image's ID only")
	f.StringVar(&o.progress, "progress", "", "how to show progress: auto, plain, tty, rawjson or quiet (default auto)")
}

// registerHow has the flags that say how it is built.
func (o *buildFlags) registerHow(f *pflag.FlagSet) {
	f.BoolVar(&o.pull, "pull", false, "ask registries for newer base images, always")
	f.BoolVar(&o.noCache, "no-cache", false, "run every step")
	f.StringSliceVar(&o.noCacheFilter, "no-cache-filter", nil, "run every step of these stages")
	list(f, &o.cacheFrom, "cache-from", "", "take the cache from there, too: an image, or type=registry|local,…")
	list(f, &o.cacheTo, "cache-to", "", "leave the cache there, too: type=inline|registry|local,…")
	list(f, &o.secrets, "secret", "", "give steps a secret, id=name[,src=path|,env=VARIABLE]")
	list(f, &o.ssh, "ssh", "", "give steps the SSH agent or keys, default|id[=socket|key[,key]]")
	list(f, &o.hosts, "add-host", "", "add a line to /etc/hosts of steps, host:ip; the ip may be host-gateway")
	f.StringVar(&o.network, "network", "default", "network of RUN steps: default, none or host")
	f.StringVar(&o.shmSize, "shm-size", "", "size of /dev/shm of steps")
	list(f, &o.ulimits, "ulimit", "", "resource limit of steps, name=soft[:hard]")
	f.StringSliceVar(&o.allow, "allow", nil, "allow steps more: network.host, security.insecure, device")
	f.StringVar(&o.call, "call", "build", "what to do: build, check, outline or targets; with ,format=json for programs")
	f.BoolVar(&o.check, "check", false, "look for mistakes and build nothing: --call=check")
	f.StringVar(&o.onError, "on-error", "", "shell opens a shell in the step that failed")
	f.StringVar(&o.builder, "builder", "", "only the engine itself is there: default")
	f.StringVar(&o.policy, "policy", "", "refused: policies in Rego are not part of this version")
	f.StringVar(&o.cgroupParent, "cgroup-parent", "", "cgroup above those of the steps")
	f.StringVarP(&o.memory, "memory", "m", "", "memory limit of each step")
	f.StringVar(&o.memorySwap, "memory-swap", "", "limit of memory plus swap of each step; -1 for unlimited swap")
	f.Int64VarP(&o.cpuShares, "cpu-shares", "c", 0, "relative CPU weight of steps")
	f.Int64Var(&o.cpuPeriod, "cpu-period", 0, "CFS period of steps in microseconds")
	f.Int64Var(&o.cpuQuota, "cpu-quota", 0, "CFS quota of steps in microseconds")
	f.StringVar(&o.cpusetCpus, "cpuset-cpus", "", "CPUs to run steps on (0-3, 0,1)")
	f.StringVar(&o.cpusetMems, "cpuset-mems", "", "memory nodes for steps (0-3, 0,1)")
}

// registerClassic has flags of docker's builder before BuildKit: those that ask for what is done anyhow are taken, the others are refused with the reason.
func (o *buildFlags) registerClassic(f *pflag.FlagSet) {
	f.BoolVar(&o.rm, "rm", true, "what a step leaves is removed always")
	f.BoolVar(&o.forceRm, "force-rm", false, "what a step leaves is removed always")
	f.BoolVar(&o.squash, "squash", false, "refused: write the stages so that the last copies what it needs")
	f.BoolVar(&o.compress, "compress", false, "contexts travel to other hosts only, and there only what has changed")
	f.BoolVar(&o.trust, "disable-content-trust", true, "no signatures are checked; false is refused")
	f.StringVar(&o.isolation, "isolation", "", "refused, but for default: it is for Windows")
	list(f, &o.securityOpt, "security-opt", "", "refused: allow security.insecure and use RUN --security=insecure")
	for _, name := range []string{"rm", "force-rm", "squash", "compress", "disable-content-trust", "isolation", "security-opt"} {
		f.MarkHidden(name)
	}
}

// settle refuses what cannot be, before anything is asked of the engine.
func (o *buildFlags) settle() error {
	refused := func(what, why string) error { return &exitError{code: 1, text: "ERROR: " + what + ": " + why} }
	switch {
	case o.squash:
		return refused("--squash", "layers are not joined; let the last stage copy what it needs")
	case !o.trust:
		return noTrust("--disable-content-trust=false")
	case o.isolation != "" && o.isolation != "default":
		return refused("--isolation", "only default is there on Linux")
	case len(o.securityOpt) > 0:
		return refused("--security-opt", "steps have no such options; use RUN --security=insecure with --allow security.insecure")
	case o.policy != "":
		return refused("--policy", "policies in Rego are not part of this version; EXPERIMENTAL_BUILDKIT_SOURCE_POLICY names a source policy in JSON")
	case o.onError != "" && o.onError != "shell":
		return refused("--on-error", "only shell is known")
	case o.onError != "" && (o.quiet || o.progress == "rawjson"):
		return refused("--on-error", "a shell needs a progress that can be seen")
	case o.push && o.load:
		return refused("push and load may not be set together at the moment", "an image that is pushed is kept, too: use --push")
	}
	if err := onlyBuilder(o.builder); err != nil {
		return err
	}
	return o.settleCall()
}

// settleCall understands --check and --call.
func (o *buildFlags) settleCall() error {
	if o.check {
		if o.call != "build" && !strings.HasPrefix(o.call, "check") && !strings.HasPrefix(o.call, "lint") {
			return invalid("ERROR: --check and --call=%s cannot be used together", o.call)
		}
		if o.call == "build" {
			o.call = "check"
		}
	}
	return nil
}

// calls are the requests of a frontend other than to build, by buildx's words.
func calls() map[string]string {
	return map[string]string{"check": "frontend.lint", "lint": "frontend.lint", "outline": "frontend.outline", "targets": "frontend.targets",
		"subrequests.describe": "frontend.subrequests.describe"}
}

// callOf splits --call=outline,format=json. The request is empty for a build.
func (o *buildFlags) callOf() (request, format string, err error) {
	name, rest, _ := strings.Cut(o.call, ",")
	name = strings.TrimPrefix(name, "type=")
	for _, field := range strings.Split(rest, ",") {
		switch key, value, _ := strings.Cut(field, "="); {
		case field == "":
		case key == "format" && (value == "json" || value == "text"):
			format = value
		default:
			return "", "", invalid("ERROR: invalid --call option %q: use format=json or format=text", field)
		}
	}
	if name == "build" || name == "" {
		return "", "", nil
	}
	request, ok := calls()[name]
	if !ok {
		return "", "", invalid("ERROR: invalid --call %q: use build, check, outline or targets", name)
	}
	return request, format, nil
}

// attrs are the attributes of the Dockerfile frontend. args are --build-arg with the proxies of docker's config file.
func (o *buildFlags) attrs(args []string) (map[string]string, error) {
	at := map[string]string{}
	set := func(key, value string) {
		if value != "" {
			at[key] = value
		}
	}
	for _, a := range args {
		name, value, ok := strings.Cut(a, "=")
		if !ok {
			if value, ok = os.LookupEnv(name); !ok {
				continue
			}
		}
		at["build-arg:"+name] = value
	}
	if _, given := at["build-arg:SOURCE_DATE_EPOCH"]; !given {
		set("build-arg:SOURCE_DATE_EPOCH", os.Getenv("SOURCE_DATE_EPOCH"))
	}
	for _, l := range o.labels {
		name, value, _ := strings.Cut(l, "=")
		at["label:"+name] = value
	}
	set("target", o.target)
	set("platform", strings.Join(o.platforms, ","))
	switch {
	case o.noCache && len(o.noCacheFilter) > 0:
		return nil, invalid("ERROR: --no-cache and --no-cache-filter cannot currently be used together")
	case o.noCache:
		at["no-cache"] = ""
	case len(o.noCacheFilter) > 0:
		at["no-cache"] = strings.Join(o.noCacheFilter, ",")
	}
	if o.pull {
		at["image-resolve-mode"] = "pull"
	}
	switch o.network {
	case "", "default":
	case "host", "none":
		at["force-network-mode"] = o.network
	default:
		return nil, invalid("ERROR: network mode %q not supported by builds: use default, none or host", o.network)
	}
	if err := o.limits(set); err != nil {
		return nil, err
	}
	return at, o.attestations(at)
}

// limits are what bounds the steps.
func (o *buildFlags) limits(set func(key, value string)) error {
	bytesOf := func(flag, key, value string) error {
		if value == "" {
			return nil
		}
		if value == "-1" && key == "memswap" {
			set(key, value)
			return nil
		}
		n, err := units.RAMInBytes(value)
		if err != nil {
			return invalid("invalid argument %q for \"--%s\" flag: %w", value, flag, err)
		}
		set(key, decimal(n))
		return nil
	}
	for _, b := range [][3]string{{"shm-size", "shm-size", o.shmSize}, {"memory", "memory", o.memory}, {"memory-swap", "memswap", o.memorySwap}} {
		if err := bytesOf(b[0], b[1], b[2]); err != nil {
			return err
		}
	}
	for key, n := range map[string]int64{"cpushares": o.cpuShares, "cpuperiod": o.cpuPeriod, "cpuquota": o.cpuQuota} {
		if n != 0 {
			set(key, decimal(n))
		}
	}
	set("cpusetcpus", o.cpusetCpus)
	set("cpusetmems", o.cpusetMems)
	set("cgroup-parent", o.cgroupParent)
	var limits []string
	for _, u := range o.ulimits {
		l, err := units.ParseUlimit(u)
		if err != nil {
			return invalid("invalid argument %q for \"--ulimit\" flag: %w", u, err)
		}
		limits = append(limits, l.String())
	}
	set("ulimit", strings.Join(limits, ","))
	return nil
}

// attestations are --attest, --provenance and --sbom; the last word about a type counts.
func (o *buildFlags) attestations(at map[string]string) error {
	all := o.attests
	for _, short := range [][2]string{{"provenance", o.provenance}, {"sbom", o.sbom}} {
		switch on, isBool := boolOf(short[1]); {
		case short[1] == "":
		case isBool && on:
			all = append(all, "type="+short[0])
		case isBool:
			all = append(all, "type="+short[0]+",disabled=true")
		default:
			all = append(all, "type="+short[0]+","+short[1])
		}
	}
	for _, text := range all {
		kind, disabled := "", false
		var rest []string
		fields, err := csvFields(text)
		if err != nil {
			return invalid("ERROR: attestation %q: %w", text, err)
		}
		for _, field := range fields {
			key, value, _ := strings.Cut(field, "=")
			switch strings.ToLower(key) {
			case "type":
				kind = value
			case "disabled":
				disabled, _ = boolOf(value)
			default:
				rest = append(rest, field)
			}
		}
		switch {
		case kind != "sbom" && kind != "provenance":
			return invalid("ERROR: attestation %q has no type: use type=sbom or type=provenance", text)
		case disabled:
			delete(at, "attest:"+kind)
		default:
			at["attest:"+kind] = strings.Join(rest, ",")
		}
	}
	return nil
}
