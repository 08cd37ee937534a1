package settings

import (
	"net"
	"strings"

	"corten.dev/corten/internal/errs"
)

// checkDevicesAndMetrics checks the folders of device descriptions and the address of the metrics.
func (s *Settings) checkDevicesAndMetrics() error {
	for _, dir := range s.CDISpecDirs {
		if dir != "" && !strings.HasPrefix(dir, "/") {
			return errs.New(errs.Invalid, "cdi-spec-dirs %q: give an absolute path", dir)
		}
	}
	if s.MetricsAddr == "" {
		return nil
	}
	if _, port, err := net.SplitHostPort(s.MetricsAddr); err != nil || port == "" {
		return errs.New(errs.Invalid, "metrics-addr %q: give a host and a port, like 127.0.0.1:9323", s.MetricsAddr)
	}
	return nil
}
