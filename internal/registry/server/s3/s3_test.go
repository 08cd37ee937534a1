package s3

import (
	"bytes"
	"fmt"
	"net"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"

	"corten.dev/corten/internal/enginetest"
	"corten.dev/corten/internal/registry/server"
	"corten.dev/corten/internal/registry/server/servertest"
)

const keyID, keySecret = "test-key", "test-secret-of-no-value"

// TestStore runs what needs a store, each on buckets of its own.
func TestStore(t *testing.T) {
	endpoint := store(t)
	for name, test := range map[string]func(t *testing.T, endpoint string){
		"Driver": testDriver, "Conformance": testConformance, "Faults": testFaults, "DeleteAndStoreMeet": testDeleteAndStoreMeet,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, endpoint)
		})
	}
}

// store is a real S3 server (versitygw) of the test's own. It is a module of its own below testdata, so that ours does not grow; the go command keeps
// the program once it was built, which takes two minutes the first time.
func store(t *testing.T) (endpoint string) {
	t.Helper()
	versitygw := servertest.Tool(t, "testdata/server", "versitygw")
	addr := enginetest.Addr(t)
	root := inMemory(t)
	for _, dir := range []string{"data", "meta"} {
		if err := os.Mkdir(filepath.Join(root, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(versitygw, "--access", keyID, "--secret", keySecret, "--port", addr, "--quiet", "posix", "--sidecar", filepath.Join(root, "meta"), filepath.Join(root, "data"))
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Logf("the store says:\n%.4000s", log.String())
		}
	})
	for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		if c, err := net.Dial("tcp", addr); err == nil {
			c.Close()
			return "http://" + addr
		}
		if time.Now().After(end) {
			t.Fatalf("the store does not answer:\n%s", log.String())
		}
	}
}

// inMemory is a folder that costs no disk, where there can be one: how a store keeps its objects is not what is tested, and took most of the time.
func inMemory(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "corten-s3-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func keyFile(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(file, []byte(keyID+"\n"+keySecret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// bucket makes one on the store, by the driver's own client.
func bucket(t *testing.T, endpoint, name string) Options {
	t.Helper()
	opts := Options{Endpoint: endpoint, Region: "us-east-1", Bucket: name, PathStyle: true, KeyFile: keyFile(t), Staging: t.TempDir(), Prefix: "some/where", PartSize: 5 << 20}
	d := &Driver{opts: opts}
	keys, err := keyPair(opts.KeyFile)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.connect(keys); err != nil {
		t.Fatal(err)
	}
	defer d.http.CloseIdleConnections()
	if _, err := d.api.CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: &name}); err != nil {
		t.Fatal(err)
	}
	return opts
}

func openBucket(t *testing.T, opts Options) *Driver {
	t.Helper()
	d, err := New(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func testDriver(t *testing.T, endpoint string) {
	n := 0
	servertest.Driver(t, func(t *testing.T) servertest.DriverTest {
		n++
		opts := bucket(t, endpoint, fmt.Sprintf("bucket-%d", n))
		return servertest.DriverTest{Clock: 2 * time.Second, Open: func(t *testing.T) server.Driver { return openBucket(t, opts) }}
	})
}

func testConformance(t *testing.T, endpoint string) {
	reg, err := server.New(server.Options{Driver: openBucket(t, bucket(t, endpoint, "registry"))})
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(reg)
	t.Cleanup(func() {
		srv.Close()
		if err := reg.Close(); err != nil {
			t.Error(err)
		}
	})
	servertest.Conformance(t, servertest.Target{URL: srv.URL})
}
