package frontend

import (
	workertypes "github.com/moby/buildkit/api/types"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	gwpb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/pb"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// The words of the wire for what the gateway says, and back.

func platformOf(p *pb.Platform) *ocispec.Platform {
	if p == nil {
		return nil
	}
	return &ocispec.Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant, OSVersion: p.OSVersion, OSFeatures: p.OSFeatures}
}

func workerRecord(w gateway.WorkerInfo) *workertypes.WorkerRecord {
	rec := &workertypes.WorkerRecord{ID: w.ID, Labels: w.Labels}
	for _, p := range w.Platforms {
		rec.Platforms = append(rec.Platforms, &pb.Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant, OSVersion: p.OSVersion, OSFeatures: p.OSFeatures})
	}
	return rec
}

func readRequest(req *gwpb.ReadFileRequest) gateway.ReadRequest {
	r := gateway.ReadRequest{Filename: req.FilePath}
	if req.Range != nil {
		r.Range = &gateway.FileRange{Offset: int(req.Range.Offset), Length: int(req.Range.Length)}
	}
	return r
}

func metaOptions(req *gwpb.ResolveSourceMetaRequest) sourceresolver.Opt {
	opt := sourceresolver.Opt{LogName: req.LogName, SourcePolicies: req.SourcePolicies}
	img := &sourceresolver.ResolveImageOpt{Platform: platformOf(req.Platform), ResolveMode: req.ResolveMode}
	if req.Image != nil {
		img.NoConfig, img.AttestationChain, img.ResolveAttestations = req.Image.NoConfig, req.Image.AttestationChain, req.Image.ResolveAttestations
	}
	opt.ImageOpt = img
	if attrs := req.Source.Attrs; attrs[pb.AttrOCILayoutStoreID] != "" || attrs[pb.AttrOCILayoutSessionID] != "" {
		opt.OCILayoutOpt = &sourceresolver.ResolveOCILayoutOpt{
			Platform: img.Platform, Store: sourceresolver.ResolveImageConfigOptStore{SessionID: attrs[pb.AttrOCILayoutSessionID], StoreID: attrs[pb.AttrOCILayoutStoreID]},
		}
	}
	if req.Git != nil {
		opt.GitOpt = &sourceresolver.ResolveGitOpt{ReturnObject: req.Git.ReturnObject}
	}
	if sum := req.HTTP.GetChecksumRequest(); sum != nil {
		opt.HTTPOpt = &sourceresolver.ResolveHTTPOpt{ChecksumReq: &sourceresolver.ResolveHTTPChecksumRequest{
			Algo: sourceresolver.ResolveHTTPChecksumAlgo(sum.Algo), Suffix: sum.Suffix,
		}}
	}
	return opt
}

func metaResponse(res *sourceresolver.MetaResponse) *gwpb.ResolveSourceMetaResponse {
	out := &gwpb.ResolveSourceMetaResponse{Source: res.Op}
	if img := res.Image; img != nil {
		out.Image = &gwpb.ResolveSourceImageResponse{Digest: string(img.Digest), Config: img.Config, AttestationChain: chainOf(img.AttestationChain)}
	}
	if git := res.Git; git != nil {
		out.Git = &gwpb.ResolveSourceGitResponse{
			Checksum: git.Checksum, Ref: git.Ref, CommitChecksum: git.CommitChecksum, CommitObject: git.CommitObject, TagObject: git.TagObject,
		}
	}
	if http := res.HTTP; http != nil {
		out.HTTP = &gwpb.ResolveSourceHTTPResponse{Checksum: string(http.Digest), Filename: http.Filename}
		if http.LastModified != nil {
			out.HTTP.LastModified = timestamppb.New(*http.LastModified)
		}
		if sum := http.ChecksumResponse; sum != nil {
			out.HTTP.ChecksumResponse = &gwpb.ChecksumResponse{Digest: sum.Digest, Suffix: sum.Suffix}
		}
	}
	return out
}

func chainOf(in *sourceresolver.AttestationChain) *gwpb.AttestationChain {
	if in == nil {
		return nil
	}
	out := &gwpb.AttestationChain{
		Root: string(in.Root), ImageManifest: string(in.ImageManifest), AttestationManifest: string(in.AttestationManifest), Blobs: make(map[string]*gwpb.Blob, len(in.Blobs)),
	}
	for _, d := range in.SignatureManifests {
		out.SignatureManifests = append(out.SignatureManifests, string(d))
	}
	for d, b := range in.Blobs {
		out.Blobs[string(d)] = &gwpb.Blob{Data: b.Data, Descriptor_: &gwpb.Descriptor{
			MediaType: b.Descriptor.MediaType, Digest: string(b.Descriptor.Digest), Size: b.Descriptor.Size, Annotations: b.Descriptor.Annotations,
		}}
	}
	return out
}
