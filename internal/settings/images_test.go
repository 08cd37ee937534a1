package settings

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestImageGC(t *testing.T) {
	s, err := Parse([]string{"--config-file", "/dev/null"}, io.Discard)
	if err != nil || s.ImageGC != (ImageGC{High: 85, Low: 75, Keep: Duration(168 * time.Hour)}) || s.ImageBlobs != "auto" {
		t.Errorf("%+v %v", s.ImageGC, err)
	}
	s, err = Parse([]string{"--config-file", "/dev/null", "--image-gc", "high=90,keep=1h,max-age=720h,tagged=true"}, io.Discard)
	if err != nil || s.ImageGC != (ImageGC{High: 90, Low: 75, Keep: Duration(time.Hour), MaxAge: Duration(720 * time.Hour), Tagged: true}) {
		t.Errorf("%+v %v", s.ImageGC, err)
	}
	if s, err = Parse([]string{"--config-file", "/dev/null", "--image-gc", "off"}, io.Discard); err != nil || s.ImageGC.High != 0 {
		t.Errorf("%+v %v", s.ImageGC, err)
	}
	file := filepath.Join(t.TempDir(), "daemon.json")
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(`{"image-gc":{"high":50,"low":40,"keep":"2h"},"image-blobs":"never"}`)
	if s, err = Parse([]string{"--config-file", file}, io.Discard); err != nil || s.ImageGC != (ImageGC{High: 50, Low: 40, Keep: Duration(2 * time.Hour)}) || s.ImageBlobs != "never" {
		t.Errorf("%+v %v", s, err)
	}
	for _, text := range []string{`{"image-gc":{"high":50,"low":60}}`, `{"image-gc":{"high":101}}`, `{"image-gc":{"keep":5}}`, `{"image-gc":{"keep":"2h","max-age":"1h"}}`, `{"image-gc":{"hihg":1}}`, `{"image-blobs":"some"}`} {
		write(text)
		if _, err := Parse([]string{"--config-file", file}, io.Discard); err == nil || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", text, err)
		}
	}
	for _, text := range []string{"high", "foo=1", "keep=soon"} {
		if _, err := Parse([]string{"--config-file", "/dev/null", "--image-gc", text}, io.Discard); err == nil {
			t.Error(text)
		}
	}
}
