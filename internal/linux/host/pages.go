package host

import (
	"bufio"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// ForgetPages lets go of the pages of the program's file that are only read. They stay in the kernel's cache: what is needed again comes back in microseconds.
//
// A mapping that has pages of its own is left alone: a linker that relocates (position-independent programs, those with C) writes into it and makes it read-only afterwards, and what it wrote is in no file.
func ForgetPages() error {
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		return err
	}
	defer f.Close()
	var from, to uintptr // of the mapping that the lines are about; to is 0 when it is not one to forget
	for lines := bufio.NewScanner(f); lines.Scan(); {
		// 00400000-00a9c000 r-xp 00000000 fe:00 10027970   /usr/bin/cortend
		// Anonymous:             0 kB
		text := lines.Text()
		if kb, ok := strings.CutPrefix(text, "Anonymous:"); ok {
			if to == 0 || strings.TrimSpace(kb) != "0 kB" {
				continue
			}
			if _, _, errno := unix.Syscall(unix.SYS_MADVISE, from, to-from, unix.MADV_DONTNEED); errno != 0 {
				return os.NewSyscallError("madvise", errno)
			}
			continue
		}
		var perm, offset, dev string
		var inode uint64
		if n, _ := fmt.Sscanf(text, "%x-%x %s %s %s %d", &from, &to, &perm, &offset, &dev, &inode); n >= 2 && (inode == 0 || strings.Contains(perm, "w")) {
			to = 0
		}
	}
	return nil
}

// FilePages is how many bytes of files the process has in memory: /proc/self/statm, third field.
func FilePages() (int64, error) {
	raw, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0, err
	}
	var size, resident, shared int64
	if _, err := fmt.Sscan(string(raw), &size, &resident, &shared); err != nil {
		return 0, fmt.Errorf("/proc/self/statm: %w", err)
	}
	return shared * int64(os.Getpagesize()), nil
}
