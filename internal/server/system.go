package server

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"runtime"
	"strings"
	"time"

	"github.com/moby/moby/api/types"
	wireevents "github.com/moby/moby/api/types/events"
	wire "github.com/moby/moby/api/types/system"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/events"
)

func (s *Server) systemRoutes() []entry {
	return []entry{
		{"GET /_ping", s.ping},
		{"HEAD /_ping", s.ping},
		{"GET /version", s.version},
		{"GET /info", s.info},
		{"GET /events", s.events},
		{"GET /system/df", s.diskUsage},
	}
}

func (s *Server) ping(w http.ResponseWriter, r *request) error {
	h := w.Header()
	h["Builder-Version"] = []string{s.builderVersion()}
	h["Swarm"] = []string{"inactive"}
	h["Cache-Control"] = []string{"no-cache, no-store, must-revalidate"}
	h["Pragma"] = []string{"no-cache"}
	h["Content-Type"] = []string{"text/plain; charset=utf-8"}
	if r.Method == http.MethodHead {
		h["Content-Length"] = []string{"0"}
		w.WriteHeader(http.StatusOK)
		return nil
	}
	h["Content-Length"] = []string{"2"}
	_, err := w.Write([]byte("OK"))
	if err != nil {
		s.Logger.Debug("answer a ping", "err", err)
	}
	return nil
}

// kernelVersion asks the system service once.
func (s *Server) kernelVersion(ctx context.Context) (string, error) {
	if s.Version.Kernel != "" {
		return s.Version.Kernel, nil
	}
	if k := s.kernel.Load(); k != nil {
		return *k, nil
	}
	info, err := s.System.Info(ctx)
	if err != nil {
		return "", err
	}
	s.kernel.Store(&info.KernelVersion)
	return info.KernelVersion, nil
}

func (s *Server) version(w http.ResponseWriter, r *request) error {
	kernel, err := s.kernelVersion(r.Context())
	if err != nil {
		return err
	}
	v := s.Version
	out := wire.VersionResponse{
		Platform: wire.PlatformInfo{Name: "Corten"}, Version: v.Version, APIVersion: api(maxVersion), MinAPIVersion: api(minVersion),
		Os: "linux", Arch: runtime.GOARCH, GitCommit: v.Commit, GoVersion: runtime.Version(), KernelVersion: kernel, BuildTime: v.BuildTime,
	}
	details := map[string]string{
		"ApiVersion": out.APIVersion, "MinAPIVersion": out.MinAPIVersion, "Os": out.Os, "Arch": out.Arch, "GitCommit": out.GitCommit,
		"GoVersion": out.GoVersion, "KernelVersion": out.KernelVersion, "BuildTime": out.BuildTime, "Experimental": "false",
	}
	out.Components = []wire.ComponentVersion{{Name: "Engine", Version: v.Version, Details: details}}
	return ok(w, out)
}

// eventLine is an event with the fields that it had until 1.51.
type eventLine struct {
	Status string `json:"status,omitempty"`
	ID     string `json:"id,omitempty"`
	From   string `json:"from,omitempty"`
	wireevents.Message
}

func fromEvent(e events.Event, version int) eventLine {
	line := eventLine{Message: wireevents.Message{
		Type: wireevents.Type(e.Type), Action: wireevents.Action(e.Action), Actor: wireevents.Actor{ID: e.ID, Attributes: orEmptyMap(e.Attributes)},
		Scope: "local", Time: e.Time.Unix(), TimeNano: e.Time.UnixNano(),
	}}
	if version < 52 {
		switch line.Type {
		case wireevents.ContainerEventType:
			line.Status, line.ID, line.From = e.Action, e.ID, e.Attributes["image"]
		case wireevents.ImageEventType:
			line.Status, line.ID = e.Action, e.ID
		}
	}
	return line
}

// eventType chooses the media type of the stream, and what goes before each event.
func eventType(accept string, version int) (kind, before string) {
	if version < 52 {
		return types.MediaTypeJSON, ""
	}
	for part := range strings.SplitSeq(accept, ",") {
		media, _, _ := strings.Cut(part, ";")
		switch media = strings.TrimSpace(media); {
		case media == types.MediaTypeJSONSequence:
			return media, "\x1e"
		case media == types.MediaTypeNDJSON, media == types.MediaTypeJSONLines && version >= 53:
			return media, ""
		}
	}
	return types.MediaTypeJSON, ""
}

func (s *Server) events(w http.ResponseWriter, r *request) error {
	now := time.Now()
	since, err := r.query.instant("since", now)
	if err != nil {
		return err
	}
	until, err := r.query.instant("until", now)
	if err != nil {
		return err
	}
	if !until.IsZero() && since.After(until) {
		return errs.New(errs.Invalid, "`since` time (%s) cannot be after `until` time (%s)", r.query.get("since"), r.query.get("until"))
	}
	filters, err := r.query.filters()
	if err != nil {
		return err
	}
	if err := filters.Accept("config", "container", "daemon", "event", "image", "label", "network", "node", "plugin", "scope", "secret", "service", "type", "volume"); err != nil {
		return err
	}
	ctx, cancel := s.endless(r)
	defer cancel()
	kind, before := eventType(r.Header.Get("Accept"), r.version)
	out := startStream(w, kind)
	enc := json.NewEncoder(out)
	enc.SetEscapeHTML(false)
	err = s.System.Events(ctx, since, until, filters, func(e events.Event) error {
		if before != "" {
			if _, err := out.Write([]byte(before)); err != nil {
				return err
			}
		}
		return enc.Encode(fromEvent(e, r.version))
	})
	if cerr := out.Close(); cerr == nil && err != nil && !errors.Is(err, context.Canceled) {
		s.Logger.Warn("events ended", "err", err)
		cut(w)
	}
	return nil
}
