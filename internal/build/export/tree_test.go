package export_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/snapshot"
	"corten.dev/corten/internal/snapshot/snapshottest"
)

func owned(e snapshottest.Entry, uid, gid int) snapshottest.Entry {
	e.Uid, e.Gid = uid, gid
	return e
}

func TestTreeIsTheWholeOfAllLayers(t *testing.T) {
	h := open(t)
	below := h.layer(t, "", snapshottest.Dir("bin", 0o755), snapshottest.File("bin/app", "old"), snapshottest.File("gone", "x"), owned(snapshottest.File("owned", "y"), 1000, 100))
	chain := h.layer(t, below, snapshottest.File("bin/app", "new"), snapshottest.File(".wh.gone", ""), snapshottest.Hard("bin/twin", "bin/app"), snapshottest.Link("link", "bin/app"),
		snapshottest.Entry{Header: tar.Header{Typeflag: tar.TypeChar, Name: "null", Mode: 0o666, Devmajor: 1, Devminor: 3}})
	want := []string{"5 bin/ 755 0:0", "0 bin/app 644 0:0  new", "1 bin/twin 644 0:0 bin/app", "2 link 777 0:0 bin/app", "3 null 666 0:0", "0 owned 644 1000:100  y"}
	h.export(t, single(chain), "tar", "dest=out.tar")
	if got := listing(t, h.asker.file.Bytes()); !slices.Equal(got, want) {
		t.Errorf("tar:\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	h.export(t, single(chain), "local", "dest=out", "mode=delete")
	if got := listing(t, h.asker.tree); !slices.Equal(got, want) {
		t.Errorf("local:\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	h.export(t, single(""), "local")
	if got := listing(t, h.asker.tree); len(got) != 0 {
		t.Errorf("the empty tree has %q", got)
	}
}

func TestTreesOfPlatformsHaveFolders(t *testing.T) {
	h := open(t)
	a, b := h.layer(t, "", snapshottest.File("f", "amd64"), snapshottest.Hard("g", "f")), h.layer(t, "", snapshottest.File("f", "arm64"))
	res := several(t, map[string]snapshot.ChainID{"linux/amd64": a, "linux/arm64": b})
	h.export(t, res, "local")
	want := []string{"5 linux_amd64/ 755 0:0", "0 linux_amd64/f 644 0:0  amd64", "1 linux_amd64/g 644 0:0 linux_amd64/f", "5 linux_arm64/ 755 0:0", "0 linux_arm64/f 644 0:0  arm64"}
	if got := listing(t, h.asker.tree); !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	if _, err := h.Export(ctx, spec("local", "platform-split=false"), h.job(res)); !errors.Is(err, errs.Conflict) || !strings.Contains(err.Error(), "/f") {
		t.Errorf("two files of one name in one folder: %v", err)
	}
	c, d := h.layer(t, "", snapshottest.Dir("d", 0o755), snapshottest.File("d/amd", "1")), h.layer(t, "", snapshottest.Dir("d", 0o755), snapshottest.File("d/arm", "2"))
	h.export(t, several(t, map[string]snapshot.ChainID{"linux/amd64": c, "linux/arm64": d}), "tar", "platform-split=false")
	if got := listing(t, h.asker.file.Bytes()); !slices.Equal(got, []string{"5 d/ 755 0:0", "0 d/amd 644 0:0  1", "0 d/arm 644 0:0  2"}) {
		t.Errorf("%q", got)
	}
}

func TestTreeHasTheTimeOfTheEpoch(t *testing.T) {
	h := open(t)
	chain := h.layer(t, "", snapshottest.File("f", "x"))
	times := func(raw []byte) time.Time {
		hdr, err := tar.NewReader(bytes.NewReader(raw)).Next()
		if err != nil {
			t.Fatal(err)
		}
		return hdr.ModTime
	}
	h.export(t, single(chain), "tar")
	if got := times(h.asker.file.Bytes()); !got.Equal(layerTime.Add(123456789)) {
		t.Errorf("time %v", got)
	}
	h.export(t, single(chain), "tar", "source-date-epoch=1700000000")
	if got := times(h.asker.file.Bytes()); got.Unix() != 1700000000 {
		t.Errorf("time %v", got)
	}
	res := single(chain)
	res.Metadata["source.date.epoch"] = []byte("1600000000")
	h.export(t, res, "tar")
	if got := times(h.asker.file.Bytes()); got.Unix() != 1600000000 {
		t.Errorf("time %v", got)
	}
}

// A reader that goes away ends the export; nothing hangs.
func TestTreeEndsWithItsReader(t *testing.T) {
	h := open(t)
	chain := h.layer(t, "", snapshottest.File("big", strings.Repeat("x", 4<<20)))
	job := h.job(single(chain))
	job.Session.Outputs = leaver{h.asker}
	for _, kind := range []string{"tar", "local"} {
		if _, err := h.Export(ctx, spec(kind), job); !errors.Is(err, errGone) {
			t.Errorf("%s: %v", kind, err)
		}
	}
}

var errGone = errors.New("the asker has gone")

type leaver struct{ *asker }

func (leaver) Tree(_ context.Context, _ string, r io.Reader) error {
	if _, err := io.ReadFull(r, make([]byte, 1000)); err != nil {
		return err
	}
	return errGone
}

func (leaver) File(context.Context, string, map[string]string) (io.WriteCloser, error) {
	return gone{}, nil
}

type gone struct{}

func (gone) Write([]byte) (int, error) { return 0, errGone }
func (gone) Close() error              { return nil }
