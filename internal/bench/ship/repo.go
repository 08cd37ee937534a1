package ship

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// repo is the few requests of the distribution protocol that the loads need.
type repo struct {
	c    *http.Client
	base string // "http://addr/v2/name/"
}

// newRepo keeps width connections open, so that connecting is not what is measured.
func newRepo(addr, name string, width int) repo {
	return repo{&http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: width, DisableCompression: true}}, "http://" + addr + "/v2/" + name + "/"}
}

// putBlob uploads in one piece (distribution-spec "POST then PUT").
func (r repo) putBlob(ctx context.Context, d ocispec.Descriptor, body io.Reader) error {
	where, err := r.begin(ctx)
	if err != nil {
		return err
	}
	sep := "?"
	if strings.Contains(where, "?") {
		sep = "&"
	}
	return r.send(ctx, where+sep+"digest="+d.Digest.String(), "application/octet-stream", d.Size, body)
}

func (r repo) begin(ctx context.Context) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.base+"blobs/uploads/", nil)
	if err != nil {
		return "", err
	}
	resp, err := r.c.Do(req)
	if err != nil {
		return "", err
	}
	if err := drain(resp); err != nil {
		return "", err
	}
	if resp.StatusCode != http.StatusAccepted {
		return "", fmt.Errorf("begin upload: %s", resp.Status)
	}
	where, err := resp.Location()
	if err != nil {
		return "", err
	}
	return where.String(), nil
}

// drain reads the rest, so that the connection is used again.
func drain(resp *http.Response) error {
	_, err := io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	return err
}

func (r repo) send(ctx context.Context, url, mediaType string, size int64, body io.Reader) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, url, io.NopCloser(body))
	if err != nil {
		return err
	}
	req.ContentLength = size
	req.Header.Set("Content-Type", mediaType)
	resp, err := r.c.Do(req)
	if err != nil {
		return err
	}
	if err := drain(resp); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusCreated {
		return fmt.Errorf("PUT %s: %s", url, resp.Status)
	}
	return nil
}
