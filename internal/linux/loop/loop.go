// Package loop makes block devices of files.
//
// It owns nothing: a device goes when it is closed and nothing of it is mounted any more, also when the process is killed (LO_FLAGS_AUTOCLEAR). It promises that a device is never taken from somebody else.
package loop

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/errs"
)

// tries bounds how often another process may be quicker.
const tries = 64

const major = 7 // of loop devices

// Options are how a file is attached.
type Options struct {
	ReadOnly bool
}

// Attach makes a device of a file. Its name is that of the device; close it when it is mounted. errs.Unavailable where the kernel has no loop devices.
func Attach(path string, opts Options) (*os.File, error) {
	mode := os.O_RDWR
	if opts.ReadOnly {
		mode = os.O_RDONLY
	}
	file, err := os.OpenFile(path, mode, 0)
	if err != nil {
		return nil, err
	}
	defer file.Close() // the device holds it
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, errs.New(errs.Unavailable, "no loop devices on this host (CONFIG_BLK_DEV_LOOP, /dev/loop-control): %w", err)
	}
	defer control.Close()
	for range tries {
		num, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, errs.New(errs.Unavailable, "get a free loop device: %w", err)
		}
		dev, err := attach(num, file, mode, opts)
		if err == unix.EBUSY { // somebody else was quicker
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("attach %s to loop device %d: %w", path, num, err)
		}
		return dev, nil
	}
	return nil, errs.New(errs.Unavailable, "attach %s: all loop devices are taken as soon as they are free", path)
}

// Of opens the device that a file is attached to already, by whomever; errs.NotFound when it is none. While it is open, the device stays what it is.
func Of(path string) (*os.File, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return nil, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	attached, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return nil, err
	}
	for _, name := range attached {
		said, err := os.ReadFile(name)
		if err != nil || filepath.Base(strings.TrimSpace(string(said))) != filepath.Base(path) { // a hint only: the name is that of another mount namespace, maybe
			continue
		}
		dev, err := os.OpenFile("/dev/"+strings.Split(name, "/")[3], os.O_RDWR, 0)
		if err != nil {
			continue // gone meanwhile, or read-only and not ours
		}
		info, err := unix.IoctlLoopGetStatus64(int(dev.Fd()))
		if err == nil && info.Inode == st.Ino && info.Device == uint64(st.Dev) {
			return dev, nil
		}
		if err := dev.Close(); err != nil {
			return nil, err
		}
	}
	return nil, errs.New(errs.NotFound, "%s is not attached to a loop device", path)
}

func attach(num int, file *os.File, mode int, opts Options) (*os.File, error) {
	name := "/dev/loop" + strconv.Itoa(num)
	dev, err := os.OpenFile(name, mode, 0)
	if errors.Is(err, os.ErrNotExist) { // a /dev that the kernel does not fill, as in containers
		if err = unix.Mknod(name, unix.S_IFBLK|0o600, int(unix.Mkdev(major, uint32(num)))); err == nil || err == unix.EEXIST {
			dev, err = os.OpenFile(name, mode, 0)
		}
	}
	if err != nil {
		return nil, err
	}
	cfg := unix.LoopConfig{Fd: uint32(file.Fd())} // blocks of 512 bytes: with larger ones, file systems of smaller blocks could not be mounted
	cfg.Info.Flags = unix.LO_FLAGS_AUTOCLEAR
	if opts.ReadOnly {
		cfg.Info.Flags |= unix.LO_FLAGS_READ_ONLY
	}
	copy(cfg.Info.File_name[:len(cfg.Info.File_name)-1], file.Name())
	err = unix.IoctlLoopConfigure(int(dev.Fd()), &cfg)
	if err == unix.EINVAL || err == unix.ENOTTY { // before Linux 5.8, or a file whose blocks are larger
		err = configureInSteps(dev, file, &cfg.Info)
	}
	if err != nil {
		dev.Close()
		return nil, err
	}
	return dev, nil
}

func configureInSteps(dev, file *os.File, info *unix.LoopInfo64) error {
	if err := unix.IoctlSetInt(int(dev.Fd()), unix.LOOP_SET_FD, int(file.Fd())); err != nil {
		return err
	}
	err := unix.IoctlLoopSetStatus64(int(dev.Fd()), info)
	if err != nil {
		err = errors.Join(err, unix.IoctlSetInt(int(dev.Fd()), unix.LOOP_CLR_FD, 0))
	}
	return err
}
