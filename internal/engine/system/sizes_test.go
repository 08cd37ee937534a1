package system

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

type lastVolumes map[string]func() (int64, time.Time, bool)

func (l lastVolumes) LastUsage(name string) (int64, time.Time, bool) { return l[name]() }

type lastTrees map[string]func() (int64, time.Time)

func (l lastTrees) Name() string                             { return "fake" }
func (l lastTrees) LastUsage(name string) (int64, time.Time) { return l[name]() }

// What is counted soon is waited for; what is not counted in a moment (a dead file server) is not, and costs nobody else's size.
func TestSizes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := time.Now()
		s := &Service{Options: Options{
			Volumes: lastVolumes{
				"known": func() (int64, time.Time, bool) { return 3, now, false },
				"soon": func() (int64, time.Time, bool) {
					if time.Since(now) < 50*time.Millisecond {
						return Unknown, time.Time{}, true
					}
					return 4, now, false
				},
				"never": func() (int64, time.Time, bool) { return -1, time.Time{}, true },
				"old":   func() (int64, time.Time, bool) { return 7, now.Add(-time.Hour), true },
			},
			Trees: lastTrees{
				"known": func() (int64, time.Time) { return 3, now },
				"never": func() (int64, time.Time) { return 0, time.Time{} },
				"old":   func() (int64, time.Time) { return 7, now.Add(-time.Hour) },
			},
		}}
		began := time.Now()
		if got, want := s.VolumeSizes(t.Context(), []string{"never", "known", "soon", "old"}), []int64{Unknown, 3, 4, 7}; !slices.Equal(got, want) {
			t.Errorf("volumes hold %d, want %d", got, want)
		}
		if got, want := s.TreeSizes(t.Context(), []string{"never", "known", "old"}), []int64{Unknown, 3, 7}; !slices.Equal(got, want) {
			t.Errorf("trees hold %d, want %d", got, want)
		}
		if took := time.Since(began); took != 2*sizePatience {
			t.Errorf("that took %v", took)
		}
		began = time.Now()
		s.VolumeSizes(t.Context(), []string{"known", "soon"})
		if took := time.Since(began); took >= sizePatience {
			t.Errorf("what is known took %v", took)
		}
	})
}
