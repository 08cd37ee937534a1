package demo

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// ship pushes the image that was built to a registry of its own, removes it and pulls it again.
func (d *Demo) ship(ctx context.Context) (err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	addr := l.Addr().String()
	if err := l.Close(); err != nil {
		return err
	}
	d.say("Starting a registry: cortend registry serve")
	log, err := os.Create(filepath.Join(d.dir, "registry.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	reg := exec.Command(filepath.Join(d.Bin, "cortend"), "registry", "serve", "--addr", addr, "--root", filepath.Join(d.dir, "registry"))
	reg.Stdout, reg.Stderr = log, log
	if err := reg.Start(); err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, reg.Process.Signal(syscall.SIGTERM), reg.Wait())
		if said, rerr := os.ReadFile(log.Name()); err != nil && rerr == nil {
			fmt.Fprintf(d.Out, "The registry's log:\n%s\n", said)
		}
	}()
	if _, err := fetch(ctx, "http://"+addr+"/v2/"); err != nil {
		return err
	}
	name := addr + "/demo/built:1"
	// Between rmi and pull go the image of the first build and the cache of builds, too: their layers are the same.
	for _, args := range [][]string{{"tag", builtName, name}, {"push", name}, {"rmi", name, builtName}, {"image", "prune", "-f"}, {"builder", "prune", "-af"}, {"pull", name}, {"image", "tags", addr + "/demo/built"}, {"run", "--rm", name}, {"rmi", name}} {
		start := time.Now()
		if err := d.show(ctx, args...); err != nil {
			return err
		}
		if args[0] == "push" || args[0] == "pull" {
			d.took("corten "+args[0], start)
		}
	}
	return nil
}
