package monitor

import (
	"bytes"
	"embed"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"corten.dev/corten/internal/errs"
	tool "corten.dev/corten/internal/linux/program"
)

//go:embed bin
var embedded embed.FS

// Embedded is the monitor program that this binary carries; nil when it was built without.
func Embedded() []byte {
	b, err := embedded.ReadFile("bin/corten-monitor")
	if err != nil {
		return nil
	}
	return b
}

// program is the monitor's program as something that can be executed.
type program struct {
	path string
	file *os.File // what path stands for, if it is a descriptor
}

// newProgram puts the program into a sealed memory file, which all monitors of this engine share; where the kernel executes no such files (vm.memfd_noexec=2), into
// a file in root.
func newProgram(root, path string) (*program, error) {
	b := Embedded()
	if path != "" {
		var err error
		if b, err = os.ReadFile(path); err != nil {
			return nil, fmt.Errorf("the monitor's program: %w", err)
		}
	}
	if b == nil {
		return nil, errs.New(errs.Unavailable, "this cortend was built without its monitor: run make build")
	}
	if p, err := memoryProgram(b); err == nil {
		return p, nil
	}
	path = filepath.Join(root, ".corten-monitor")
	aside := path + ".new"
	if err := os.WriteFile(aside, b, 0o700); err != nil {
		return nil, fmt.Errorf("write the monitor's program: %w", err)
	}
	if err := os.Rename(aside, path); err != nil {
		return nil, fmt.Errorf("write the monitor's program: %w", err)
	}
	return &program{path: path}, nil
}

func memoryProgram(b []byte) (*program, error) {
	f, err := tool.Sealed("corten-monitor", bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	path := fmt.Sprintf("/proc/self/fd/%d", f.Fd())
	if err := executable(path); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &program{path: path, file: f}, nil
}

// executable tries the program: without a control socket it ends at once with code 2.
func executable(path string) error {
	p, err := os.StartProcess(path, []string{"corten-monitor"}, &os.ProcAttr{Files: []*os.File{nil, nil, nil, nil}})
	if err != nil {
		return err
	}
	st, err := p.Wait()
	if err != nil {
		return err
	}
	if st.ExitCode() != 2 {
		return fmt.Errorf("the monitor's program: %s", st)
	}
	return nil
}

func (p *program) close() error {
	var c io.Closer = p.file
	if p.file == nil {
		return nil
	}
	return c.Close()
}
