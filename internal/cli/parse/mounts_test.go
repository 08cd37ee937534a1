package parse

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/mount"
)

// What our engine knows besides goes along as fields beside Docker's.
func TestMountOfOurs(t *testing.T) {
	m, err := Mount("type=bind,src=/a,dst=/b,ro,idmap=uids=0-1000-1;gids=0-5-1,U")
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(m)
	if want := `{"Type":"bind","Source":"/a","Target":"/b","ReadOnly":true,"IDMap":"uids=0-1000-1;gids=0-5-1","Chown":true}`; err != nil || string(text) != want {
		t.Errorf("%s, %v; want %s", text, err, want)
	}
	if m, err = Mount("type=bind,src=/a,dst=/b,idmap,chown=false"); err != nil || m.IDMap != "auto" || m.Chown {
		t.Errorf("%+v, %v", m, err)
	}
	if m, err = Mount("type=bind,src=/a,dst=/b"); err != nil {
		t.Fatal(err)
	}
	if text, err := json.Marshal(m); err != nil || strings.Contains(string(text), "IDMap") || strings.Contains(string(text), "Chown") {
		t.Errorf("an unmodified request has fields of ours: %s, %v", text, err)
	}
}

// What --mount accepts has a type and a target, options of its type alone, and means the same when it is read again.
func FuzzMount(f *testing.F) {
	for _, s := range []string{
		"type=bind,src=/a,dst=/b,ro,bind-propagation=rslave,bind-nonrecursive", "src=v,dst=/x,volume-nocopy,volume-label=a=b,volume-opt=o=size=1m,volume-driver=d,volume-subpath=s",
		"type=tmpfs,target=/t,tmpfs-size=1m,tmpfs-mode=1777", "type=image,source=i,destination=/i,image-subpath=p", `"dst=/a,b",type=bind,src=.`, "type=bind,src=/a,dst=/b,readonly,bind-recursive=readonly,bind-propagation=rprivate",
		"type=bind,src=/a,dst=/b,idmap=uids=0-1-2#3-4-5,U", "dst=/x,,", "TYPE=BIND,ro=maybe",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		m, err := Mount(s)
		if err != nil {
			return
		}
		if m.Type == "" || m.Target == "" {
			t.Errorf("%q: %+v", s, m)
		}
		if m.BindOptions != nil && m.Type != mount.TypeBind || m.VolumeOptions != nil && m.Type != mount.TypeVolume || m.TmpfsOptions != nil && m.Type != mount.TypeTmpfs || m.ImageOptions != nil && m.Type != mount.TypeImage {
			t.Errorf("%q: options of another type: %+v", s, m)
		}
		text, err := json.Marshal(m)
		if err != nil {
			t.Fatalf("%q: %v", s, err)
		}
		var again Mounted
		if err := json.Unmarshal(text, &again); err != nil {
			t.Fatalf("%q: %s: %v", s, text, err)
		}
	})
}

// A -v is a bind with a source and a target, or the target of an anonymous volume.
func FuzzVolume(f *testing.F) {
	for _, s := range []string{"/a:/b:ro", "v:/x", "/x", "./a:/b", ":", "a::b", "/a:/b:idmap=uids=0-1-1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		bind, anonymous, err := Volume(s)
		if err != nil {
			return
		}
		if (bind == "") == (anonymous == "") {
			t.Errorf("%q: %q %q", s, bind, anonymous)
		}
		if source, rest, ok := strings.Cut(bind, ":"); bind != "" && (!ok || source == "" || rest == "") {
			t.Errorf("%q: %q", s, bind)
		}
	})
}
