package steps

import (
	"slices"
	"testing"

	"github.com/moby/buildkit/solver/pb"
)

type described []string

func (d described) Devices() (names, warnings []string) { return slices.Clone(d), nil }

func TestChosenDevices(t *testing.T) {
	host := described{"v.com/net=b", "v.com/gpu=1", "v.com/gpu=0"}
	for name, want := range map[string][]string{
		"v.com/gpu=1": {"v.com/gpu=1"}, "v.com/gpu": {"v.com/gpu=0"}, "v.com/gpu=*": {"v.com/gpu=0", "v.com/gpu=1"}, "v.com/gpu=7": nil, "v.com/none": nil,
	} {
		got, err := chosen([]*pb.CDIDevice{{Name: name}}, host)
		if (err != nil) != (want == nil) || err == nil && !slices.Equal(got[0].DeviceIDs, want) {
			t.Errorf("%s: %v %v", name, got, err)
		}
		if got, err := chosen([]*pb.CDIDevice{{Name: name, Optional: true}}, host); err != nil || (len(got) == 0) != (want == nil) {
			t.Errorf("%s, optional: %v %v", name, got, err)
		}
	}
}
