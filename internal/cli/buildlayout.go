package cli

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"corten.dev/corten/internal/buildwire"
	"corten.dev/corten/internal/errs"
)

// take writes a stream beside the file that it will be.
func (s *buildSink) take(r io.Reader) (err error) {
	if special(s.file) {
		return writeTo(s.file, r)
	}
	if err := os.MkdirAll(filepath.Dir(s.file), 0o755); err != nil {
		return err
	}
	s.temp, err = writeAside(s.file, r, 0o644)
	return err
}

// layoutContext is --build-context name=oci-layout://folder[:tag|@digest].
func (p *buildPlan) layoutContext(key, name, value string) error {
	dir, dgst, hasDigest := strings.Cut(value, "@")
	tag := "latest"
	if i := strings.LastIndexByte(dir, ':'); i > strings.LastIndexByte(dir, '/') {
		dir, tag = dir[:i], dir[i+1:]
	}
	if !hasDigest {
		raw, err := layoutRef(dir, tag)
		if err != nil {
			return fmt.Errorf("ERROR: context %s: %w", name, err)
		}
		var desc struct{ Digest string }
		if err := json.Unmarshal(raw, &desc); err != nil || desc.Digest == "" {
			return invalid("ERROR: context %s: %s has no index that can be read", name, dir)
		}
		dgst = desc.Digest
	}
	p.stores[name] = dir
	p.req.Attrs[key] = "oci-layout://" + name + "@" + dgst
	return nil
}

// maxIndex bounds the index.json of a layout.
const maxIndex = 4 << 20

// layoutIndex is index.json; fields that are not ours stay as they are.
type layoutIndex struct {
	SchemaVersion int               `json:"schemaVersion"`
	MediaType     string            `json:"mediaType,omitempty"`
	Manifests     []json.RawMessage `json:"manifests"`
	Annotations   json.RawMessage   `json:"annotations,omitempty"`
}

func readIndex(dir string) (*layoutIndex, error) {
	f, err := os.Open(filepath.Join(dir, "index.json"))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxIndex))
	if err != nil {
		return nil, err
	}
	index := &layoutIndex{}
	if err := json.Unmarshal(data, index); err != nil {
		return nil, errs.New(errs.Invalid, "%s is no OCI layout: %w", dir, err)
	}
	return index, nil
}

// describe is what of a descriptor tells its name.
type describe struct {
	Digest      string            `json:"digest"`
	Annotations map[string]string `json:"annotations"`
}

func (d *describe) called(name string) bool {
	return d.Digest == name || d.Annotations["org.opencontainers.image.ref.name"] == name || d.Annotations["io.containerd.image.name"] == name
}

// layoutRef finds what a name or digest leads to. A layout with one image has it under every missing "latest".
func layoutRef(dir, name string) ([]byte, error) {
	index, err := readIndex(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errs.New(errs.NotFound, "no OCI layout in %s", dir)
	}
	if err != nil {
		return nil, err
	}
	for _, raw := range index.Manifests {
		var d describe
		if err := json.Unmarshal(raw, &d); err != nil {
			return nil, errs.New(errs.Invalid, "%s is no OCI layout: %w", dir, err)
		}
		if d.called(name) {
			return raw, nil
		}
	}
	if name == "latest" && len(index.Manifests) == 1 {
		return index.Manifests[0], nil
	}
	return nil, errs.New(errs.NotFound, "%q is not in the OCI layout %s", name, dir)
}

// layout reads and writes the folders of OCI layouts that were named for this build.
func (s *buildSession) layout(q *buildwire.Stream, ask buildwire.Ask) error {
	dir, ok := s.plan.stores[ask.Store]
	if !ok {
		return errs.New(errs.NotFound, "no OCI layout %q was named for this build", ask.Store)
	}
	switch ask.What {
	case buildwire.AskRef:
		raw, err := layoutRef(dir, ask.Name)
		if err != nil {
			return err
		}
		return q.Answer(json.RawMessage(raw))
	case buildwire.AskSetRef:
		s.mu.Lock()
		defer s.mu.Unlock()
		return setLayoutRef(dir, ask.Name, ask.Descriptor)
	case buildwire.AskBlob:
		return sendBlob(q, dir, ask.Name)
	}
	return putBlob(q, dir, ask)
}

// blobPath is where a layout keeps a blob; the digest comes from the engine and is no path of its choice.
func blobPath(dir, dgst string) (string, error) {
	algorithm, sum, ok := strings.Cut(dgst, ":")
	if !ok || algorithm != "sha256" && algorithm != "sha512" || len(sum) < 64 || strings.Trim(sum, "0123456789abcdef") != "" {
		return "", errs.New(errs.Invalid, "invalid digest %q", dgst)
	}
	return filepath.Join(dir, "blobs", algorithm, sum), nil
}

func sendBlob(q *buildwire.Stream, dir, dgst string) error {
	path, err := blobPath(dir, dgst)
	if err != nil {
		return err
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return errs.New(errs.NotFound, "blob %s is not in the OCI layout %s", dgst, dir)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if err := q.Answer(buildwire.Size{Size: st.Size()}); err != nil {
		return err
	}
	return copyOut(q, f)
}

// putBlob writes a blob beside its name, and names it once it is what it should be.
func putBlob(q *buildwire.Stream, dir string, ask buildwire.Ask) error {
	path, err := blobPath(dir, ask.Name)
	if err != nil {
		return err
	}
	if st, err := os.Stat(path); err == nil && st.Size() == ask.Size {
		return q.Ended()
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	hash := sha256.New()
	size := &counter{r: io.TeeReader(q, hash)}
	temp, err := writeAside(path, size, 0o644)
	if err != nil {
		return err
	}
	sum := "sha256:" + hex.EncodeToString(hash.Sum(nil))
	if size.n != ask.Size || strings.HasPrefix(ask.Name, "sha256:") && sum != ask.Name {
		return errors.Join(errs.New(errs.Invalid, "blob %s came as %s with %d bytes", ask.Name, sum, size.n), os.Remove(temp))
	}
	return rename(temp, path)
}

// setLayoutRef gives a descriptor a name in the index, and makes the folder a layout.
func setLayoutRef(dir, name string, descriptor []byte) error {
	index, err := readIndex(dir)
	if errors.Is(err, fs.ErrNotExist) {
		index, err = &layoutIndex{SchemaVersion: 2, MediaType: "application/vnd.oci.image.index.v1+json"}, nil
	}
	if err != nil {
		return err
	}
	desc := map[string]any{}
	if err := json.Unmarshal(descriptor, &desc); err != nil {
		return errs.New(errs.Invalid, "descriptor of %s: %w", name, err)
	}
	annotations, _ := desc["annotations"].(map[string]any)
	if annotations == nil {
		annotations = map[string]any{}
	}
	if name != "" && name != desc["digest"] {
		annotations["org.opencontainers.image.ref.name"] = name
		desc["annotations"] = annotations
	}
	raw, err := json.Marshal(desc)
	if err != nil {
		return err
	}
	kept := index.Manifests[:0]
	for _, m := range index.Manifests {
		var d describe
		if json.Unmarshal(m, &d) == nil && !d.called(name) {
			kept = append(kept, m)
		}
	}
	index.Manifests = append(kept, raw)
	data, err := json.Marshal(index)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := replaceFile(filepath.Join(dir, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`)); err != nil {
		return err
	}
	return replaceFile(filepath.Join(dir, "index.json"), data)
}

// replaceFile writes a file as a whole.
func replaceFile(name string, data []byte) error {
	temp, err := writeAside(name, bytes.NewReader(data), 0o644)
	if err != nil {
		return err
	}
	return rename(temp, name)
}
