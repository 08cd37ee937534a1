package containers_test

import (
	"os"
	"strings"
	"testing"

	"corten.dev/corten/internal/engine/containers"
)

// hidden and readonly are Docker's lists, written down once more: what a container that asked for nothing must not see, and must not write.
var (
	hidden = strings.Fields(`/proc/asound /proc/acpi /proc/interrupts /proc/kcore /proc/keys /proc/latency_stats /proc/timer_list /proc/timer_stats /proc/sched_debug /proc/scsi
		/sys/firmware /sys/devices/virtual/powercap`)
	readonly = strings.Fields("/proc/bus /proc/fs /proc/irq /proc/sys /proc/sysrq-trigger")
)

// ordinary is what a container says of its own walls: "seen PATH", "writes PATH", "opened NODE" where there is a hole.
const ordinary = `
	grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status
	for p in HIDDEN; do
		if [ -d $p ]; then seen=$(ls -A $p); elif [ -e $p ]; then seen=$(head -c 1 $p | wc -c | grep -v '^0$'); else seen=; fi
		[ -z "$seen" ] || echo "seen $p"
	done
	for p in READONLY; do
		[ ! -e $p ] || awk -v p=$p '$5 == p && $6 ~ /^ro(,|$)/ {ok = 1} END {exit !ok}' /proc/self/mountinfo || echo "writes $p"
	done
	for n in "fuse c 10 229" "tun c 10 200" "kmsg c 1 11" "loop0 b 7 0"; do
		mknod /node $(echo $n | cut -d' ' -f2-) || echo "no node $n"
		(: </node) 2>/dev/null && echo "opened $n"
		rm -f /node
	done
	cat /dev/null && head -c 1 /dev/zero | wc -c
	echo end`

// What a container gets that asked for nothing: the kernel's own view of its capabilities, filter, masks and devices. Each of these walls could be taken out of the engine without any test noticing.
func TestWallsOfAnOrdinaryContainer(t *testing.T) {
	h := newHost(t)
	script := strings.NewReplacer("HIDDEN", strings.Join(hidden, " "), "READONLY", strings.Join(readonly, " ")).Replace(ordinary)
	run := func(change func(*containers.CreateRequest)) string {
		req := sh(script)
		change(&req)
		id := h.run(req)
		h.wait(id, containers.NotRunning)
		return h.logs(id)
	}
	const sets = "CapInh:\t0000000000000000\nCapPrm:\t00000000a80425fb\nCapEff:\t00000000a80425fb\nCapBnd:\t00000000a80425fb\nCapAmb:\t0000000000000000\nNoNewPrivs:\t0\nSeccomp:\t2\n"
	if got := run(func(*containers.CreateRequest) {}); got != sets+"1\nend\n" {
		t.Errorf("an ordinary one:\n%s", got)
	}
	const user = "CapInh:\t0000000000000000\nCapPrm:\t0000000000000000\nCapEff:\t0000000000000000\nCapBnd:\t00000000a80425fb\nCapAmb:\t0000000000000000\nNoNewPrivs:\t0\nSeccomp:\t2\n"
	if got := run(func(r *containers.CreateRequest) { r.Config.User = "web" }); !strings.HasPrefix(got, user) || strings.Contains(got, "seen") || strings.Contains(got, "opened") {
		t.Errorf("an ordinary user's:\n%s", got)
	}
	// That the script finds holes where they are: without walls it does.
	open := run(func(r *containers.CreateRequest) { r.Host.Privileged = true })
	for _, want := range []string{"Seccomp:\t0\n", "seen /proc/interrupts\n", "writes /proc/sys\n"} {
		if !strings.Contains(open, want) {
			t.Errorf("a privileged one lacks %q:\n%s", want, open)
		}
	}
	if f, err := os.Open("/dev/fuse"); err == nil {
		must(t, f.Close())
		if !strings.Contains(open, "opened fuse") {
			t.Errorf("a privileged one cannot open a device:\n%s", open)
		}
	}
}
