// Package program is the registry's program, which the engine's binary carries inside itself.
//
// A registry is a process of its own and uses little of what the engine links. Started from the engine's binary it would hold 22 MB before its first request, since what all
// these packages set up at the start touches pages everywhere; the program of its own holds 10 MB.
//
// It owns no state. It promises that the registry is the process that was started: same number, arguments, environment and descriptors.
package program

import (
	"bytes"
	"embed"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/linux/program"
)

//go:embed bin
var embedded embed.FS

// onDisk is where a file without a name can be had on a disk nearly everywhere; elsewhere the program lies in memory.
const onDisk = "/var/tmp"

// Exec makes this process the registry. It returns only if it could not.
func Exec(argv, env []string) error {
	b, err := embedded.ReadFile("bin/corten-registry")
	if err != nil {
		return errs.New(errs.Unavailable, "this cortend was built without its registry: run make build")
	}
	disk, err := program.Nameless(onDisk, bytes.NewReader(b))
	if err == nil {
		err = errs.Also(program.Exec(disk, argv, env), disk.Close())
	}
	memory, merr := program.Sealed("corten-registry", bytes.NewReader(b))
	if merr == nil {
		merr = errs.Also(program.Exec(memory, argv, env), memory.Close())
	}
	return errs.Also(err, merr)
}
