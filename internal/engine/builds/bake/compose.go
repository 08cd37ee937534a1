package bake

import "corten.dev/corten/internal/errs"

// compose reads the services of a compose file as targets.
func (c *config) compose(f File, env map[string]string) error {
	return errs.New(errs.NotImplemented, "%s: compose files are not read as bake files by this engine yet; give HCL or JSON", f.Name)
}
