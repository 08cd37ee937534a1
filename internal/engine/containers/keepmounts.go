package containers

import (
	"os"

	"corten.dev/corten/internal/container"
	"corten.dev/corten/internal/linux/pidfd"
	"corten.dev/corten/internal/monitor"
)

// keepMounts holds a container's mount namespace while it runs. Whoever lets go of it last takes forty mounts down and waits for two grace periods of the kernel; without this that
// is the first process, before anybody hears of its end (0.6 ms idle, several under load). With it, it is the engine, in the background. It is not for containers that were given
// something of the host's or a volume: when their end is told, that must be free. Nor does anything depend on it: a container whose namespace is not held ends as any other process does.
func keepMounts(rec *container.Record, mon monitor.Monitor) *os.File {
	fd := mon.PIDFD()
	if fd == nil || len(rec.Mounts) > 0 {
		return nil
	}
	held, err := pidfd.Open(fd, mon.PID(), "ns/mnt")
	if err != nil {
		return nil // it has ended already
	}
	return held
}
