package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"time"
)

// StatsFigure is what an engine uses of one processor, in percent: while nobody looks, and while one client streams the figures of all its containers.
type StatsFigure struct {
	Running       int
	Idle, Looking float64
}

// statsSpan is how long each is measured.
const statsSpan = 20 * time.Second

// Stats measures what it costs the engine that somebody looks at n containers with `stats`: one stream of each, a reading a second.
func Stats(ctx context.Context, e *Engine, n int, progress io.Writer) (f StatsFigure, err error) {
	if err := e.Start(ctx); err != nil {
		return f, errors.Join(err, e.Stop())
	}
	defer func() { err = errors.Join(err, e.Stop()) }()
	fmt.Fprintf(progress, "starting %d containers\n", n)
	defer func() { err = errors.Join(err, e.removeMany(n)) }()
	if err := e.many(n, 4); err != nil {
		return f, err
	}
	time.Sleep(settle)
	f.Running = n
	if f.Idle, err = e.busy(); err != nil {
		return f, err
	}
	look := exec.CommandContext(ctx, e.Client[0], append(e.Client[1:len(e.Client):len(e.Client)], "stats", "--format", "{{.Name}} {{.CPUPerc}}")...)
	look.Env = append(os.Environ(), e.Env...)
	if err := look.Start(); err != nil {
		return f, err
	}
	defer func() {
		_ = look.Process.Kill() // it would go on for ever
		_ = look.Wait()
	}()
	time.Sleep(3 * time.Second)
	f.Looking, err = e.busy()
	return f, err
}

// busy is what the engine's process uses of one processor for a while, in percent.
func (e *Engine) busy() (float64, error) {
	if e.daemon == nil {
		return 0, ErrSkip
	}
	from, err := ticksOf(e.daemon.Process.Pid)
	if err != nil {
		return 0, err
	}
	start := time.Now()
	time.Sleep(statsSpan)
	to, err := ticksOf(e.daemon.Process.Pid)
	return float64(to-from) / time.Since(start).Seconds(), err // a tick is a hundredth of a second
}

// ticksOf is a process's processor time (proc_pid_stat(5), utime and stime).
func ticksOf(pid int) (uint64, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, err
	}
	fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(fields) < 13 {
		return 0, fmt.Errorf("/proc/%d/stat: %d fields", pid, len(fields))
	}
	user, err1 := strconv.ParseUint(string(fields[11]), 10, 64)
	system, err2 := strconv.ParseUint(string(fields[12]), 10, 64)
	return user + system, errors.Join(err1, err2)
}

// PrintStats writes the figures for people.
func PrintStats(w io.Writer, label string, f StatsFigure) error {
	_, err := fmt.Fprintf(w, "%s with %d containers: %.2f %% of a core idle, %.2f %% while one client streams the stats of all\n", label, f.Running, f.Idle, f.Looking)
	return err
}
