package settings

import (
	"strings"

	"corten.dev/corten/internal/errs"
)

// checkDevices checks the folders of device descriptions.
func (s *Settings) checkDevices() error {
	for _, dir := range s.CDISpecDirs {
		if dir != "" && !strings.HasPrefix(dir, "/") {
			return errs.New(errs.Invalid, "cdi-spec-dirs %q: give an absolute path", dir)
		}
	}
	return nil
}
