// Package spread keeps what comes and goes in one folder from slowing down what comes next, on the one file system where it does.
//
// It owns the folder ".spread-NAME" beside a folder NAME, and makes it only on an ext4 without a journal.
//
// Such an ext4 does not use an inode again for minutes after it was deleted, and for each new file it looks at every inode of the group that was deleted lately: 50 ns for each, 20 to 200 µs for
// a file once a few hundred containers, of 25 files each, were made and removed. What is made in a folder begins in the folder's own group. So new folders are made in one of many beginnings,
// each in a group of its own, and moved to where they belong:
//
//	.spread-NAME/0 … 63        with the attribute T (chattr(1), "top of a hierarchy": what is below does not belong together), so that the kernel gives each the group with the fewest folders
//	.spread-NAME/17/ID  ──▶  NAME/ID
//
// The attribute on NAME itself would not do: the kernel takes the group with the fewest folders each time, and where many containers stay, that is the one in which the last one was removed.
// With a journal none of this is so, and nearness is worth more.
package spread

import (
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	topDir     = 0x00020000 // FS_TOPDIR_FL
	beginnings = 64         // a disk of 256 GB has 126 places for them
)

// Folder is one in which folders come and go. Its methods may be called by several goroutines.
type Folder struct {
	path, from string // from is empty where nothing is spread
}

// Below prepares an existing folder, and removes what a killed process left in the beginnings. With an error the Folder can be used as well: it makes folders in place.
func Below(dir string) (*Folder, error) {
	f := &Folder{path: dir}
	open, err := os.Open(dir)
	if err != nil {
		return f, err
	}
	defer open.Close()
	if !unjournaled(open) {
		return f, nil
	}
	from := filepath.Join(filepath.Dir(dir), ".spread-"+filepath.Base(dir))
	if err := begin(from); err != nil {
		return f, fmt.Errorf("spread what is in %s: %w", dir, err)
	}
	f.from = from
	return f, nil
}

func begin(from string) error {
	if err := os.Mkdir(from, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	if err := mark(from); err != nil {
		return err
	}
	for i := range beginnings {
		path := from + "/" + strconv.Itoa(i)
		err := os.Mkdir(path, 0o700)
		if errors.Is(err, os.ErrExist) {
			err = sweep(path)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// sweep removes folders that never came to where they belong: they are empty.
func sweep(path string) error {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil || st.Nlink <= 2 {
		return err
	}
	left, err := os.ReadDir(path)
	for _, e := range left {
		err = errors.Join(err, os.Remove(path+"/"+e.Name()))
	}
	return err
}

// Mkdir makes a folder of that name. It fails as mkdir(2) does, also where one is there already.
func (f *Folder) Mkdir(name string, mode uint32) error {
	path := f.path + "/" + name
	if f.from != "" {
		h := fnv.New32a()
		h.Write([]byte(name))
		new := f.from + "/" + strconv.Itoa(int(h.Sum32()%beginnings)) + "/" + name
		err := unix.Mkdir(new, mode)
		if err == nil {
			if err = unix.Renameat2(unix.AT_FDCWD, new, unix.AT_FDCWD, path, unix.RENAME_NOREPLACE); err == nil {
				return nil
			}
			if rerr := unix.Rmdir(new); rerr != nil {
				return &os.PathError{Op: "rmdir", Path: new, Err: rerr}
			}
		}
		if err == unix.EEXIST {
			return &os.PathError{Op: "mkdir", Path: path, Err: err}
		}
		// The beginnings were removed, or something else is mounted at the folder: it does without, and tells what else is wrong.
	}
	if err := unix.Mkdir(path, mode); err != nil {
		return &os.PathError{Op: "mkdir", Path: path, Err: err}
	}
	return nil
}

func mark(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	flags, err := unix.IoctlGetUint32(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if err == nil && flags&topDir == 0 {
		err = unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, int(flags|topDir))
	}
	if err != nil {
		return fmt.Errorf("attributes of %s: %w", f.Name(), err)
	}
	return nil
}

// unjournaled tells whether f is on an ext4 that says it has no journal.
func unjournaled(f *os.File) bool {
	var fs unix.Statfs_t
	var st unix.Stat_t
	if unix.Fstatfs(int(f.Fd()), &fs) != nil || fs.Type != unix.EXT4_SUPER_MAGIC || unix.Fstat(int(f.Fd()), &st) != nil {
		return false
	}
	device, err := os.Readlink(fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev)))
	if err != nil {
		return false
	}
	task, err := os.ReadFile("/sys/fs/ext4/" + device[strings.LastIndexByte(device, '/')+1:] + "/journal_task")
	return err == nil && strings.TrimSpace(string(task)) == "<none>"
}
