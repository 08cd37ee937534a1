package settings

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"corten.dev/corten/internal/errs"
)

// ImageGC says when images go by themselves.
type ImageGC struct {
	High   int      `json:"high"`    // percent of the file system in use at which images begin to go; 0: never for want of space
	Low    int      `json:"low"`     // percent at which that ends
	Keep   Duration `json:"keep"`    // an image stays so long after its last use, however little space there is
	MaxAge Duration `json:"max-age"` // an image goes so long after its last use, however much space there is; 0: never
	Tagged bool     `json:"tagged"`  // images with names go, too; without it only nameless ones
}

// Duration is a time span as people write it ("168h").
type Duration time.Duration

// UnmarshalJSON reads a string with a unit.
func (d *Duration) UnmarshalJSON(raw []byte) error {
	var s string
	if err := json.Unmarshal(raw, &s); err != nil {
		return errs.New(errs.Invalid, "%s: give a time span in quotes, like \"168h\"", raw)
	}
	span, err := time.ParseDuration(s)
	*d = Duration(span)
	return err
}

// MarshalJSON writes what UnmarshalJSON reads.
func (d Duration) MarshalJSON() ([]byte, error) { return json.Marshal(time.Duration(d).String()) }

// gcFlag is --image-gc high=85,low=75,…: keys that are left out keep their defaults; "off" is high=0.
type gcFlag struct{ gc *ImageGC }

func (f gcFlag) Type() string { return "gc" }

func (f gcFlag) String() string {
	if f.gc == nil {
		return ""
	}
	span := func(d Duration) string { // 168h, not 168h0m0s
		s := time.Duration(d).String()
		if strings.HasSuffix(s, "m0s") {
			s = strings.TrimSuffix(s, "0s")
		}
		if strings.HasSuffix(s, "h0m") {
			s = strings.TrimSuffix(s, "0m")
		}
		return s
	}
	s := fmt.Sprintf("high=%d,low=%d,keep=%s,tagged=%t", f.gc.High, f.gc.Low, span(f.gc.Keep), f.gc.Tagged)
	if f.gc.MaxAge > 0 {
		s += ",max-age=" + span(f.gc.MaxAge)
	}
	return s
}

func (f gcFlag) Set(text string) error {
	if text == "off" {
		f.gc.High, f.gc.Low, f.gc.MaxAge = 0, 0, 0
		return nil
	}
	for part := range strings.SplitSeq(text, ",") {
		key, value, _ := strings.Cut(part, "=")
		var err error
		switch key {
		case "high":
			f.gc.High, err = strconv.Atoi(value)
		case "low":
			f.gc.Low, err = strconv.Atoi(value)
		case "tagged":
			f.gc.Tagged, err = strconv.ParseBool(value)
		case "keep", "max-age":
			var span time.Duration
			span, err = time.ParseDuration(value)
			if key == "keep" {
				f.gc.Keep = Duration(span)
			} else {
				f.gc.MaxAge = Duration(span)
			}
		default:
			return fmt.Errorf("unknown key %q: give high=PERCENT, low=PERCENT, keep=TIME, max-age=TIME, tagged=true|false, or off", key)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
	}
	return nil
}

func (s *Settings) imageFlags(set *pflag.FlagSet) {
	set.Var(gcFlag{&s.ImageGC}, "image-gc", "When images go by themselves (see below); \"off\" for never")
	set.StringVar(&s.ImageBlobs, "image-blobs", s.ImageBlobs, "Keep the compressed layers of pulled images: auto (where they cannot be made again bit for bit), always, never")
}

func (s *Settings) checkImages() error {
	gc := s.ImageGC
	switch {
	case gc.High < 0 || gc.High > 100 || gc.Low < 0 || gc.Low > gc.High:
		return errs.New(errs.Invalid, "image-gc: high %d and low %d: give percents, low not above high", gc.High, gc.Low)
	case gc.Keep < 0 || gc.MaxAge < 0:
		return errs.New(errs.Invalid, "image-gc: a time span cannot be negative")
	case gc.MaxAge > 0 && gc.MaxAge < gc.Keep:
		return errs.New(errs.Invalid, "image-gc: images cannot go after %s and be kept for %s", time.Duration(gc.MaxAge), time.Duration(gc.Keep))
	}
	switch s.ImageBlobs {
	case "auto", "always", "never":
		return nil
	}
	return errs.New(errs.Invalid, "image-blobs %q: choose auto, always or never", s.ImageBlobs)
}

// imageText explains the collection of images on the page of the settings.
const imageText = `
## Images that go by themselves

A disk must not fill up. Every ten minutes, and after a pull, load or import, the engine looks how full the file system of its data root is. At ` + "`high`" + ` percent or
more it removes images, the one that was used longest ago first, until no more than ` + "`low`" + ` percent is in use. A use is whatever happens to a container of the image, or a new name for it.
An image that a container stands on, running or not, never goes, nor one that was used within ` + "`keep`" + `. Only images without a name go, unless ` + "`tagged`" + ` says otherwise:
what was given a name can be pulled again only if a registry has it, and that is for the operator to know. With ` + "`max-age`" + ` images also go when there is space enough.
What is left of broken downloads goes after a day (an hour when the disk is above the mark); until then the next pull goes on where it ended. Each removal is logged with
its reason, and is an event. In the file: ` + "`\"image-gc\": {\"high\": 85, \"low\": 75, \"keep\": \"168h\", \"max-age\": \"0s\", \"tagged\": false}`" + `.

Layers of pulled and loaded images are bounded, without a setting: 128 GiB unpacked, 200 times their compressed size once they are beyond 4 GiB, 4 million files; an image has 1024 layers at
most, an index 4096 entries, and attestations and other artifacts of an index 256 MB together. A compressed layer that is not kept is made again when it is needed; a version of the engine
with other compressors compares each with its digest before it relies on it, and if that fails says so: the layer then goes out compressed anew, under another digest.
`
