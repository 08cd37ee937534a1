package buildkitapi

import (
	"strings"
	"time"

	control "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/solver/pb"
	rpc "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/engine/builds"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/filter"
)

// attestationType is what BuildKit calls the predicates that records of history name.
const attestationType = "application/vnd.in-toto+json"

// maxLogs bounds one message of status: clients take 4 MB.
const maxLogs = 1 << 20

// Trace gives what happened as a client without the control API gets it: the same messages, marshalled, one in each "moby.buildkit.trace" of the stream of POST /build?version=2.
func (d *Door) Trace(st build.Status) (all [][]byte, err error) {
	err = eachMessage(st, func(msg *control.StatusResponse) error {
		raw, err := proto.Marshal(msg)
		all = append(all, raw)
		return err
	})
	return all, err
}

// eachMessage puts what happened into as many messages as it takes.
func eachMessage(st build.Status, send func(*control.StatusResponse) error) error {
	msg := &control.StatusResponse{}
	for i := range st.Vertexes {
		msg.Vertexes = append(msg.Vertexes, wireVertex(&st.Vertexes[i]))
	}
	for i := range st.Parts {
		msg.Statuses = append(msg.Statuses, wirePart(&st.Parts[i]))
	}
	for i := range st.Warnings {
		w := &st.Warnings[i]
		msg.Warnings = append(msg.Warnings, &control.VertexWarning{
			Vertex: string(w.Vertex), Level: int64(w.Level), Short: w.Short, Detail: w.Detail, Url: w.URL, Info: w.SourceInfo, Ranges: w.Range,
		})
	}
	size := 0
	for i := range st.Logs {
		l := &st.Logs[i]
		for data := l.Data; len(data) > 0; {
			part := data[:min(len(data), maxLogs)]
			data = data[len(part):]
			if size += len(part); size > maxLogs {
				if err := send(msg); err != nil {
					return err
				}
				msg, size = &control.StatusResponse{}, len(part)
			}
			msg.Logs = append(msg.Logs, &control.VertexLog{Vertex: string(l.Vertex), Timestamp: timestamppb.New(l.Timestamp), Stream: int64(l.Stream), Msg: part})
		}
	}
	return send(msg)
}

func wireVertex(v *build.VertexStatus) *control.Vertex {
	out := &control.Vertex{Digest: string(v.Digest), Name: v.Name, Cached: v.Cached, Started: stamp(v.Started), Completed: stamp(v.Completed), Error: v.Error, ProgressGroup: v.Group}
	for _, in := range v.Inputs {
		out.Inputs = append(out.Inputs, string(in))
	}
	return out
}

func wirePart(p *build.PartStatus) *control.VertexStatus {
	return &control.VertexStatus{
		ID: p.ID, Vertex: string(p.Vertex), Name: p.Name, Current: p.Current, Total: p.Total, Timestamp: timestamppb.New(p.Timestamp), Started: stamp(p.Started), Completed: stamp(p.Completed),
	}
}

// stamp is a time that need not be there.
func stamp(t *time.Time) *timestamppb.Timestamp {
	if t == nil {
		return nil
	}
	return timestamppb.New(*t)
}

func wirePlatforms(list []string) []*pb.Platform {
	var out []*pb.Platform
	for _, p := range list {
		parts := append(strings.SplitN(p, "/", 3), "", "")
		out = append(out, &pb.Platform{OS: parts[0], Architecture: parts[1], Variant: parts[2]})
	}
	return out
}

func lastUse(rec builds.UsageRecord) time.Time {
	if rec.LastUsed != nil {
		return *rec.LastUsed
	}
	return rec.Created
}

func wireRecord(rec builds.UsageRecord) *control.UsageRecord {
	return &control.UsageRecord{
		ID: rec.ID, Mutable: rec.Mutable, InUse: rec.InUse, Size: rec.Size, Parents: rec.Parents, CreatedAt: timestamppb.New(rec.Created), LastUsedAt: stamp(rec.LastUsed),
		UsageCount: int64(rec.UsageCount), Description: rec.Description, RecordType: rec.Kind, Shared: rec.Shared,
	}
}

// wireFilters reads filters as buildx writes them: "key=value", "key==value", "key!=value", "key~=pattern", and "key" for a flag. The operator stays with the key.
func wireFilters(list []string) (filter.Args, error) {
	args := filter.Args{}
	for _, f := range list {
		if f == "" { // buildx sends one where there is none
			continue
		}
		for one := range strings.SplitSeq(f, ",") {
			key, value, ok := strings.Cut(one, "=")
			value = strings.TrimPrefix(value, "=")
			switch {
			case !ok && key != "":
				value = "true"
			case key == "":
				return nil, errs.New(errs.Invalid, "invalid filter %q", f)
			}
			args[key] = append(args[key], value)
		}
	}
	return args, nil
}

func historyEvent(b builds.Build) *control.BuildHistoryEvent {
	rec := &control.BuildHistoryRecord{
		Ref: b.Ref, Frontend: b.Frontend, FrontendAttrs: b.FrontendAttrs, ExporterResponse: b.Response, CreatedAt: timestamppb.New(b.Created),
		NumCachedSteps: int32(b.Cached), NumTotalSteps: int32(b.Steps), NumWarnings: int32(b.Warnings),
	}
	for _, e := range b.Exports {
		rec.Exporters = append(rec.Exporters, &control.Exporter{Type: e.Type, Attrs: e.Attrs})
	}
	event := control.BuildHistoryEventType_STARTED
	if !b.Completed.IsZero() {
		event = control.BuildHistoryEventType_COMPLETE
		rec.CompletedAt, rec.NumCompletedSteps = timestamppb.New(b.Completed), int32(b.Steps)
	}
	if b.Error != "" {
		rec.Error = &rpc.Status{Code: int32(codes.Unknown), Message: b.Error}
	}
	for _, doc := range b.Provenance {
		info := &control.BuildResultInfo{Attestations: []*control.Descriptor{{
			MediaType: attestationType, Digest: doc.Digest.String(), Size: doc.Size, Annotations: map[string]string{"in-toto.io/predicate-type": doc.Type},
		}}}
		if doc.Platform == "" {
			rec.Result = info
			continue
		}
		if rec.Results == nil {
			rec.Results = map[string]*control.BuildResultInfo{}
		}
		rec.Results[doc.Platform] = info
	}
	return &control.BuildHistoryEvent{Type: event, Record: rec}
}
