package server

import (
	"corten.dev/corten/internal/buildwire"
	"corten.dev/corten/internal/engine/builds"
)

func linked(*buildwire.Request) builds.GatewayFunc { return nil }
