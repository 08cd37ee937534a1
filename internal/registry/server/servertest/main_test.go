package servertest_test

import (
	"os"
	"testing"

	"corten.dev/corten/internal/registry/server/servertest"
)

func TestMain(m *testing.M) {
	os.Exit(servertest.Main(m))
}
