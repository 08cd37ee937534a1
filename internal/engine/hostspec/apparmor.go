package hostspec

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// ownProfile is the AppArmor profile of containers that ask for none. An administrator who loads one of that name beforehand has replaced it.
const ownProfile = "corten-default"

// ownRules bound what even root in a container may do by way of files: whatever the mounts show by mistake, it changes no kernel setting, mounts nothing, and looks into
// nobody outside. What a container needs is allowed widely, because namespaces, capabilities and seccomp hold the rest.
const ownRules = `
#include <tunables/global>

profile ` + ownProfile + ` flags=(attach_disconnected,mediate_deleted) {
  file,
  network,
  unix,
  capability,
  umount,

  # The engine and its monitors are unconfined; beside them a container knows only its like.
  signal (receive) peer=unconfined,
  signal (send, receive) peer=` + ownProfile + `,
  ptrace (readby, tracedby) peer=unconfined,
  ptrace (read, readby, trace, tracedby) peer=` + ownProfile + `,

  deny mount,

  # In /proc only processes' own files and the settings of the container's namespaces (net, IPC, UTS) are written.
  deny @{PROC}/{[^1-9s],[^1-9s][^/]*,s[^ye]*} w,
  deny @{PROC}/{acpi,asound,bus,driver,fs,irq,scsi,tty}/** w,
  deny @{PROC}/{sysrq-trigger,kcore,kmem,mem} rwklx,
  deny @{PROC}/sys/[^kn]*/** w,
  deny @{PROC}/sys/kernel/{[^smd],[^smd][^/]*,s[^he]*,m[^s]*,d[^o]*,*/**} w,

  # In /sys only control groups are.
  deny /sys/[^f]*/** wklx,
  deny /sys/f[^s]*/** wklx,
  deny /sys/fs/[^c]*/** wklx,
  deny /sys/fs/c[^g]*/** wklx,
  deny /sys/firmware/** rwklx,
  deny /sys/kernel/security/** rwklx,
}
`

// loadOwnProfile has AppArmor's own tool compile and load the rules. Hosts without the tool have no way to load any.
func loadOwnProfile() error {
	tool, err := exec.LookPath("apparmor_parser")
	if err != nil {
		if tool, err = exec.LookPath("/sbin/apparmor_parser"); err != nil {
			return err
		}
	}
	cmd := exec.Command(tool, "-Kr")
	cmd.Stdin = strings.NewReader(ownRules)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", tool, err, bytes.TrimSpace(out))
	}
	return nil
}

// loadedProfile is the one of names that the kernel has, "" for none of them.
func loadedProfile(names ...string) (string, error) {
	list, err := os.ReadFile("/sys/kernel/security/apparmor/profiles")
	if err != nil {
		return "", err
	}
	for _, name := range names {
		if strings.Contains("\n"+string(list), "\n"+name+" (") {
			return name, nil
		}
	}
	return "", nil
}
