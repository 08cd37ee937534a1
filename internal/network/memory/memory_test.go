package memory_test

import (
	"testing"

	"corten.dev/corten/internal/network"
	"corten.dev/corten/internal/network/memory"
	"corten.dev/corten/internal/network/networktest"
)

func TestContract(t *testing.T) {
	networktest.Run(t, func(*testing.T) network.Manager { return memory.New() })
}
