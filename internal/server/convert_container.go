package server

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
	wire "github.com/moby/moby/api/types/container"
	wirenet "github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/storage"

	"corten.dev/corten/internal/container"
	"corten.dev/corten/internal/engine/containers"
	"corten.dev/corten/internal/network"
)

// shown is the status that Docker's words have: a container that is being started is still what it was.
func shown(st container.State) container.Status {
	if st.Status != container.Starting {
		return st.Status
	}
	if st.StartedAt.IsZero() {
		return container.Created
	}
	return container.Exited
}

// statusText is the STATUS column of ps.
func statusText(st container.State, now time.Time) string {
	since := func(t time.Time) string { return units.HumanDuration(now.Sub(t)) }
	switch shown(st) {
	case container.Running:
		return "Up " + since(st.StartedAt) + healthText(st.Health)
	case container.Paused:
		return "Up " + since(st.StartedAt) + " (Paused)"
	case container.Restarting:
		return fmt.Sprintf("Restarting (%d) %s ago", st.ExitCode, since(st.FinishedAt))
	case container.Removing:
		return "Removal In Progress"
	case container.Dead:
		return "Dead"
	case container.Created:
		return "Created"
	}
	if st.FinishedAt.IsZero() {
		return ""
	}
	return fmt.Sprintf("Exited (%d) %s ago", st.ExitCode, since(st.FinishedAt))
}

func healthText(h *container.Health) string {
	switch {
	case h == nil:
		return ""
	case h.Status == container.HealthStarting:
		return " (health: starting)"
	}
	return " (" + string(h.Status) + ")"
}

// healthView converts what the probes found; nil where nothing is checked.
func healthView(h *container.Health) *wire.Health {
	if h == nil {
		return nil
	}
	out := &wire.Health{Status: wire.HealthStatus(h.Status), FailingStreak: h.FailingStreak, Log: make([]*wire.HealthcheckResult, len(h.Log))}
	for i, p := range h.Log {
		out.Log[i] = &wire.HealthcheckResult{Start: p.Start, End: p.End, ExitCode: p.ExitCode, Output: p.Output}
	}
	return out
}

// healthSummary is the same for a list, where there is none as well.
func healthSummary(h *container.Health) *wire.HealthSummary {
	if h == nil {
		return &wire.HealthSummary{Status: wire.NoHealthcheck}
	}
	return &wire.HealthSummary{Status: wire.HealthStatus(h.Status), FailingStreak: h.FailingStreak}
}

// commandText is the COMMAND column of ps.
func commandText(path string, args []string) string {
	var b strings.Builder
	b.WriteString(path)
	for _, arg := range args {
		if strings.Contains(arg, " ") {
			b.WriteString(" '" + arg + "'")
		} else {
			b.WriteString(" " + arg)
		}
	}
	return b.String()
}

// briefSummary is what the usual table of ps shows of a container. Our own client asks for it (brief=1): it is a quarter of a summary, and each row's way from a record to the
// terminal is most of what ps takes where many run. Other engines ignore the word and send the whole.
type briefSummary struct {
	ID      string `json:"Id"`
	Names   [1]string
	Image   string
	ImageID string
	Command string
	Created int64
	Ports   []wire.PortSummary `json:",omitempty"`
	State   wire.ContainerState
	Status  string
}

func briefly(views []containers.View, now time.Time) []briefSummary {
	out := make([]briefSummary, len(views))
	for i := range views {
		view := &views[i]
		out[i] = briefSummary{
			ID: view.ID, Names: [1]string{"/" + view.Name}, Image: view.ImageRef, ImageID: view.Image.String(), Command: commandText(view.Path, view.Args),
			Created: view.Created.Unix(), State: wire.ContainerState(shown(view.State)), Status: statusText(view.State, now),
		}
		if view.State.Status.Live() {
			out[i].Ports = portSummaries(view.Sandbox, view.Config.ExposedPorts)
		}
	}
	return out
}

// summary converts one line of ps.
func summary(view containers.View, version int, now time.Time) wire.Summary {
	out := wire.Summary{
		ID:              view.ID,
		Names:           []string{"/" + view.Name},
		Image:           view.ImageRef,
		ImageID:         view.Image.String(),
		Command:         commandText(view.Path, view.Args),
		Created:         view.Created.Unix(),
		Ports:           []wire.PortSummary{},
		Labels:          orEmptyMap(view.Config.Labels),
		State:           wire.ContainerState(shown(view.State)),
		Status:          statusText(view.State, now),
		NetworkSettings: &wire.NetworkSettingsSummary{Networks: endpoints(view.Record, version)},
		Mounts:          mountPoints(view.Mounts),
	}
	if view.State.Status.Live() {
		out.Ports = portSummaries(view.Sandbox, view.Config.ExposedPorts)
	}
	out.HostConfig.NetworkMode = view.Host.NetworkMode
	if version >= 52 {
		out.Health = healthSummary(view.State.Health)
	}
	if version >= 46 {
		out.HostConfig.Annotations = view.Host.Annotations
	}
	if view.SizeRw != nil {
		out.SizeRw = *view.SizeRw
	}
	if view.SizeRootFs != nil {
		out.SizeRootFs = *view.SizeRootFs
	}
	return out
}

// inspectView is the answer of inspect; HostConfig, Config and NetworkSettings have version-dependent fields.
type inspectView struct {
	wire.InspectResponse
	HostConfig      hostView
	Config          configView
	NetworkSettings any
	// LogDestinations is ours: where the log is handed on to, and how that goes.
	LogDestinations []logDestination `json:",omitempty"`
	// Egress is ours, too: what the egress list let through and dropped.
	Egress *network.EgressCount `json:",omitempty"`
}

// logDestination is one destination of a container's log.
type logDestination struct {
	Driver  string
	State   string // "waiting", "connected", "away", "idle"
	Error   string `json:",omitempty"`
	Sent    int64  // messages
	Lost    int64  // lines that the bound of the container's own log took before they were sent
	Refused int64  // messages that were given up
}

// oldNetworkSettings is NetworkSettings until 1.51, with the default bridge's endpoint at the top.
type oldNetworkSettings struct {
	Bridge                 string
	SandboxID              string
	SandboxKey             string
	Ports                  wirenet.PortMap
	HairpinMode            bool
	LinkLocalIPv6Address   string
	LinkLocalIPv6PrefixLen int
	SecondaryIPAddresses   []struct{}
	SecondaryIPv6Addresses []struct{}
	EndpointID             string
	Gateway                string
	GlobalIPv6Address      string
	GlobalIPv6PrefixLen    int
	IPAddress              string
	IPPrefixLen            int
	IPv6Gateway            string
	MacAddress             string
	Networks               map[string]*wirenet.EndpointSettings
}

func stateView(st container.State) *wire.State {
	status := shown(st)
	return &wire.State{
		Status:     wire.ContainerState(status),
		Running:    status == container.Running || status == container.Paused || status == container.Restarting,
		Paused:     status == container.Paused,
		Restarting: status == container.Restarting,
		OOMKilled:  st.OOMKilled,
		Dead:       status == container.Dead,
		Pid:        st.PID,
		ExitCode:   st.ExitCode,
		Error:      st.Error,
		StartedAt:  stamp(st.StartedAt),
		FinishedAt: stamp(st.FinishedAt),
		Health:     healthView(st.Health),
	}
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

// treeData says where a container's file tree lies, in the words of Docker's overlay2. The merged tree stands in no mount table of the host: it is seen through the container's first
// process, while there is one.
func treeData(view containers.View) map[string]string {
	data := map[string]string{}
	if view.Place.Upper == "" {
		return data
	}
	data["UpperDir"], data["WorkDir"] = view.Place.Upper, view.Place.Work
	if len(view.Place.Lower) > 0 {
		data["LowerDir"] = strings.Join(view.Place.Lower, ":")
	}
	if view.State.Status.Live() && view.State.PID > 0 {
		data["MergedDir"] = "/proc/" + strconv.Itoa(view.State.PID) + "/root"
	}
	return data
}

// inspection converts a container for inspect.
func inspection(view containers.View, version int) inspectView {
	out := inspectView{
		InspectResponse: wire.InspectResponse{
			ID: view.ID, Created: stamp(view.Created), Path: view.Path, Args: orEmpty(view.Args),
			State: stateView(view.State), Image: view.Image.String(),
			ResolvConfPath: view.ResolvConfPath, HostnamePath: view.HostnamePath, HostsPath: view.HostsPath, LogPath: view.LogPath,
			Name: "/" + view.Name, RestartCount: view.RestartCount, Driver: view.Driver, Platform: osOf(view.Platform),
			ExecIDs:      view.Execs,
			ProcessLabel: view.ProcessLabel, MountLabel: view.MountLabel,
			GraphDriver: &storage.DriverData{Name: view.Driver, Data: treeData(view)},
			SizeRw:      view.SizeRw, SizeRootFs: view.SizeRootFs,
			Mounts: mountPoints(view.Mounts),
		},
		HostConfig: fromHost(view.Host, version),
		Config:     configView{Config: fromConfig(view.Config)},
		Egress:     view.Egress,
	}
	for _, opt := range view.Host.SecurityOpt {
		if profile, found := strings.CutPrefix(strings.Replace(opt, ":", "=", 1), "apparmor="); found {
			out.AppArmorProfile = profile
		}
	}
	for _, d := range view.LogDestinations {
		out.LogDestinations = append(out.LogDestinations, logDestination{Driver: d.Driver, State: d.State, Error: d.Error, Sent: d.Sent, Lost: d.Lost, Refused: d.Refused})
	}
	nets := endpoints(view.Record, version)
	if version < 52 {
		if list := view.Config.OnBuild; list != nil {
			out.Config.OnBuild = list
		} else {
			out.Config.OnBuild = []string(nil)
		}
		if ep, ok := view.Networks[view.Host.NetworkMode]; ok && ep.MAC != "" {
			out.Config.MacAddress = &ep.MAC
		}
		out.NetworkSettings = oldSettings(view, nets)
		return out
	}
	settings := &wire.NetworkSettings{Ports: wirenet.PortMap{}, Networks: nets}
	if view.Sandbox != nil && view.State.Status.Live() {
		settings.SandboxID, settings.SandboxKey = sandboxID(view), sandboxKey(view)
		settings.Ports = publishedPorts(view.Sandbox, view.Config.ExposedPorts)
	}
	out.NetworkSettings = settings
	return out
}

func oldSettings(view containers.View, nets map[string]*wirenet.EndpointSettings) *oldNetworkSettings {
	out := &oldNetworkSettings{Ports: wirenet.PortMap{}, Networks: nets}
	if view.Sandbox != nil && view.State.Status.Live() {
		out.SandboxID, out.SandboxKey = sandboxID(view), sandboxKey(view)
		out.Ports = publishedPorts(view.Sandbox, view.Config.ExposedPorts)
	}
	if e := nets["bridge"]; e != nil {
		out.EndpointID, out.IPPrefixLen, out.GlobalIPv6PrefixLen = e.EndpointID, e.IPPrefixLen, e.GlobalIPv6PrefixLen
		out.MacAddress = e.MacAddress.String()
		for _, a := range []struct {
			text *string
			addr interface {
				IsValid() bool
				String() string
			}
		}{{&out.Gateway, e.Gateway}, {&out.IPAddress, e.IPAddress}, {&out.IPv6Gateway, e.IPv6Gateway}, {&out.GlobalIPv6Address, e.GlobalIPv6Address}} {
			if a.addr.IsValid() {
				*a.text = a.addr.String()
			}
		}
	}
	return out
}

// sandboxID is the container's own id: a network namespace has no other name here.
func sandboxID(view containers.View) string { return view.ID }

// sandboxKey is where its network namespace can be entered (nsenter --net=…): as its first process has it, since no file of ours holds it.
func sandboxKey(view containers.View) string {
	if view.State.PID == 0 {
		return ""
	}
	return fmt.Sprintf("/proc/%d/ns/net", view.State.PID)
}

// osOf is the first word of a platform.
func osOf(platform string) string {
	os, _, _ := strings.Cut(platform, "/")
	if os == "" {
		return "linux"
	}
	return os
}
