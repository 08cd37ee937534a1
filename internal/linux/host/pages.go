package host

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
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
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		// 00400000-00a9c000 r-xp 00000000 fe:00 10027970   /usr/bin/cortend
		// Anonymous:             0 kB
		key, value, _ := strings.Cut(lines.Text(), " ")
		switch {
		case !strings.HasSuffix(key, ":"):
			if from, to, err = readOnly(key, value); err != nil {
				return fmt.Errorf("/proc/self/smaps: %w", err)
			}
		case key == "Anonymous:" && to != 0 && strings.TrimSpace(value) == "0 kB":
			if _, _, errno := unix.Syscall(unix.SYS_MADVISE, from, to-from, unix.MADV_DONTNEED); errno != 0 {
				return os.NewSyscallError("madvise", errno)
			}
		}
	}
	return lines.Err()
}

// readOnly reads the heading of a mapping: its addresses, and what else is said of it. to is 0 for one that can be written, or that is no file's.
func readOnly(addresses, rest string) (from, to uintptr, err error) {
	about := strings.Fields(rest) // permissions, offset, device, inode, and a name if it has one
	if len(about) < 4 || strings.Contains(about[0], "w") || about[3] == "0" {
		return 0, 0, nil
	}
	first, last, _ := strings.Cut(addresses, "-")
	a, err := strconv.ParseUint(first, 16, 64)
	if err != nil {
		return 0, 0, err
	}
	b, err := strconv.ParseUint(last, 16, 64)
	return uintptr(a), uintptr(b), err
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
