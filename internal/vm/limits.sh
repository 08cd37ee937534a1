#!/bin/bash
# What an engine makes of limits on a host with cgroup v2 and systemd, seen in the files of the control groups themselves.
#
#   limits.sh cgroupfs|systemd      the driver; corten and cortend are in the path
set -u
. "$(dirname "$0")/lib.sh"
driver=$1
dir=$(mktemp -d /tmp/limits.XXXX)
export CORTEN_HOST=unix://$dir/c.sock
echo '{}' >"$dir/daemon.json"
mkdir "$dir/cdi"
cat >"$dir/cdi/thing.json" <<'END'
{"cdiVersion": "0.7.0", "kind": "vendor.com/thing", "devices": [{"name": "disk", "containerEdits": {"env": ["THING=disk"], "deviceNodes": [{"path": "/dev/thing", "hostPath": "/dev/vda", "permissions": "r"}]}}]}
END
engine() {
  cortend -H "$CORTEN_HOST" -H tcp://127.0.0.1:2399 --data-root "$dir/data" --exec-root "$dir/exec" --bridge ctnvm0 --bip 10.213.8.1/24 --nft-table corten-vm \
    --metrics-addr 127.0.0.1:2398 --cdi-spec-dir "$dir/cdi" --exec-opt "native.cgroupdriver=$driver" --config-file "$dir/daemon.json" >>"$dir/log" 2>&1 &
  engine=$!
  eventually corten version >/dev/null 2>&1 && sleep 1 && kill -0 $engine || { cat "$dir/log"; wait $engine; bad "the engine does not serve, or ended with $?"; exit 1; }
}
cgroups() { find /sys/fs/cgroup -type d | grep -vE '/corten(/helpers)?$' | sort; } # the folder of ours stays
before=$(cgroups)
engine
busybox_image
is "driver that info tells" "$(corten info -f '{{.CgroupDriver}} {{.CgroupVersion}}')" "$driver 2"

echo "limits of run"
corten run -d --name lim --memory 64m --memory-swap 96m --memory-reservation 32m --cpus 0.5 --pids-limit 50 --cpuset-cpus 0 --cpuset-mems 0 --cpu-shares 512 busybox sleep 1000 >/dev/null || bad "run with limits"
a=$(group_of lim) id=$(corten inspect -f '{{.Id}}' lim)
case $driver in
cgroupfs) is "place" "$a" "/sys/fs/cgroup/corten/$id" ;;
systemd) is "place" "$a" "/sys/fs/cgroup/system.slice/corten-$id.scope" ;;
esac
limits() { # of a, after `run`
  is memory.max "$(cat "$a/memory.max")" 67108864
  is memory.swap.max "$(cat "$a/memory.swap.max")" 33554432
  is memory.low "$(cat "$a/memory.low")" 33554432
  is cpu.max "$(cat "$a/cpu.max")" "50000 100000"
  is pids.max "$(cat "$a/pids.max")" 50
  is cpuset.cpus "$(cat "$a/cpuset.cpus")" 0
  is cpuset.mems "$(cat "$a/cpuset.mems")" 0
  weight=$(cat "$a/cpu.weight")
  [ "$weight" -gt 10 ] && [ "$weight" -lt 100 ] && say "cpu.weight: $weight" || bad "cpu.weight of 512 shares is $weight"
}
limits
if [ "$driver" = systemd ]; then
  systemctl daemon-reload
  echo "the same after systemctl daemon-reload"
  limits
  is "unit" "$(systemctl is-active "corten-$id.scope")" active
fi
has "stats" "$(corten stats --no-stream --format '{{.MemUsage}} {{.PIDs}}' lim)" "/ 64MiB 1"
is "cgroup that exec sees" "$(corten exec lim cat /proc/self/cgroup)" "0::/"
has "processes" "$(corten top lim)" "sleep 1000"

echo "update"
corten update --memory 128m --memory-swap 256m --cpus 1.5 --pids-limit 70 --cpuset-cpus 0-1 --cpu-shares 2048 lim >/dev/null || bad "update"
is memory.max "$(cat "$a/memory.max")" 134217728
is memory.swap.max "$(cat "$a/memory.swap.max")" 134217728
is cpu.max "$(cat "$a/cpu.max")" "150000 100000"
is pids.max "$(cat "$a/pids.max")" 70
is cpuset.cpus "$(cat "$a/cpuset.cpus")" 0-1
[ "$(cat "$a/cpu.weight")" -gt 100 ] && say "cpu.weight: $(cat "$a/cpu.weight")" || bad "cpu.weight of 2048 shares is $(cat "$a/cpu.weight")"

echo "pause"
corten pause lim >/dev/null || bad "pause"
is cgroup.freeze "$(cat "$a/cgroup.freeze")" 1
has "frozen" "$(cat "$a/cgroup.events")" "frozen 1"
has "ps" "$(corten ps --format '{{.Status}}')" Paused
corten unpause lim >/dev/null || bad "unpause"
is cgroup.freeze "$(cat "$a/cgroup.freeze")" 0
corten rm -f lim >/dev/null || bad "rm -f lim"
eventually gone "$a" || bad "$a is still there"

echo "namespace of cgroups"
is "default" "$(corten run --rm busybox cat /proc/self/cgroup)" "0::/"
is "an old client's default" "$(DOCKER_API_VERSION=1.40 corten run --rm busybox cat /proc/self/cgroup)" "0::/"
is "default" "$(corten run --rm busybox sh -c '[ -e /sys/fs/cgroup/memory.max ] && mkdir /sys/fs/cgroup/x 2>&1')" "mkdir: can't create directory '/sys/fs/cgroup/x': Read-only file system"
has "host" "$(corten run --rm --cgroupns host busybox sh -c 'cat /proc/self/cgroup; [ -d /sys/fs/cgroup$(head -c4096 /proc/self/cgroup | grep 0:: | cut -c4-) ] && ls /sys/fs/cgroup' 2>&1)" system.slice
mount | grep -q '/sys/fs/cgroup.*nsdelegate' && say "the host's options of the tree stay" || bad "the host's tree lost its options: $(grep ' /sys/fs/cgroup ' /proc/mounts)"
has "privileged" "$(corten run --rm --privileged busybox sh -c 'mkdir /sys/fs/cgroup/x && ls -d /sys/fs/cgroup/x')" /sys/fs/cgroup/x

echo "devices"
disk=$(stat -c '%Hr:%Lr' /dev/vda)
node="mknod /tmp/disk b ${disk/:/ } && dd if=/tmp/disk of=/dev/null bs=512 count=1"
has "default" "$(corten run --rm busybox sh -c "$node 2>&1")" "Operation not permitted"
has "rule" "$(corten run --rm --device-cgroup-rule "b $disk r" busybox sh -c "$node 2>&1")" "1+0 records in"
has "rule without write" "$(corten run --rm --device-cgroup-rule "b $disk r" busybox sh -c "mknod /tmp/disk b ${disk/:/ } && dd if=/dev/zero of=/tmp/disk count=0 conv=notrunc 2>&1")" "Operation not permitted"
has "--device" "$(corten run --rm --device /dev/vda:/dev/x:r busybox dd if=/dev/x of=/dev/null count=1 2>&1)" "1+0 records in"
has "privileged" "$(corten run --rm --privileged busybox dd if=/dev/vda of=/dev/null count=1 2>&1)" "1+0 records in"
corten run -d --name dev busybox sleep 1000 >/dev/null
[ "$driver" != systemd ] || systemctl daemon-reload
corten update --memory 64m --memory-swap -1 dev >/dev/null || bad "update of memory alone"
has "default, after an update" "$(corten exec dev sh -c "$node 2>&1")" "Operation not permitted"
corten rm -f dev >/dev/null

echo "devices by name"
corten run -d --name thing --device vendor.com/thing=disk busybox sh -c 'echo "thing $THING"; exec sleep 1000' >/dev/null || bad "run with a device of a description"
thing() { corten exec thing sh -c 'dd if=/dev/thing of=/dev/null bs=512 count=1 2>&1'; }
has "reading" "$(thing)" "1+0 records in"
has "environment" "$(corten logs thing)" "thing disk"
has "writing" "$(corten exec thing dd if=/dev/zero of=/dev/thing count=0 conv=notrunc 2>&1)" "Operation not permitted"
[ "$driver" != systemd ] || systemctl daemon-reload
has "reading, after a reload of systemd" "$(thing)" "1+0 records in"
corten update --memory 64m thing >/dev/null || bad "update of a container with a device"
has "reading, after an update" "$(thing)" "1+0 records in"
corten rm -f thing >/dev/null
has "GPUs without a description" "$(corten run --rm --gpus all busybox true 2>&1)" 'could not select device driver "" with capabilities: [[gpu]]'
has "info" "$(corten info)" "cdi: vendor.com/thing=disk"

echo "block devices"
corten run -d --name bio --blkio-weight 300 --device-read-bps /dev/vda:1mb --device-write-iops /dev/vda:50 busybox sleep 1000 >/dev/null 2>"$dir/warnings" || bad "run with limits of block devices"
bio=$(group_of bio)
has "io.max" "$(cat "$bio/io.max")" "$disk rbps=1048576 wbps=max riops=max wiops=50"
if [ -e "$bio/io.weight" ] || [ -e "$bio/io.bfq.weight" ]; then
  has "weight" "$(cat "$bio"/io.weight "$bio"/io.bfq.weight 2>/dev/null)" "default"
else
  has "weight" "$(cat "$dir/warnings")" "Your kernel does not support Block I/O weight or the cgroup is not mounted. Weight discarded."
fi
corten rm -f bio >/dev/null

echo "figures"
corten run -d --name fig --memory 64m --pids-limit 30 busybox sh -c 'i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; exec sleep 1000' >/dev/null
fig=$(group_of fig)
eventually grep -q sleep "/proc/$(pid_of fig)/cmdline" || bad "fig did not come to its sleep"
get() { (exec 3<>/dev/tcp/127.0.0.1/$1; printf 'GET %s HTTP/1.0\r\nAccept: %s\r\n\r\n' "$2" "${3:-*/*}" >&3; cat <&3); }
stats=$(get 2399 "/v1.50/containers/fig/stats?stream=0&one-shot=1")
has "limit of memory" "$stats" '"limit":67108864'
has "limit of processes" "$stats" '"limit":30'
has "inactive page cache" "$stats" '"inactive_file":'
case $stats in *max_usage* | *percpu_usage*) bad "figures that v2 does not have: $stats" ;; *) say "no figures of v1" ;; esac
used=$(sed -n 's/usage_usec //p' "$fig/cpu.stat") told=$(echo "$stats" | grep -o '"total_usage":[0-9]*' | head -1 | cut -d: -f2)
[ $((told / 1000)) -gt 0 ] && [ $((told / 1000)) -le "$used" ] && say "processor time: $told ns, then $used us" || bad "processor time: $told ns told, $used us used"
now=$(cat "$fig/memory.current")
told=$(echo "$stats" | grep -o '"memory_stats":{[^{]*' | grep -o '"usage":[0-9]*' | cut -d: -f2)
[ "${told:-0}" -gt 0 ] && [ $((told - now)) -lt 2000000 ] && [ $((now - told)) -lt 2000000 ] && say "memory: $told, then $now" || bad "memory: $told told, $now used"
has "processes" "$stats" "\"pids_stats\":{\"current\":$(cat "$fig/pids.current"),"
metrics=$(get 2398 /metrics application/openmetrics-text)
has "metrics" "$metrics" 'container_spec_memory_limit_bytes{id="'
has "metrics" "$metrics" "# EOF"
corten rm -f fig >/dev/null

echo "AppArmor"
label() { corten run --rm "$@" busybox cat /proc/self/attr/current 2>&1; }
is "default" "$(label)" "corten-default (enforce)"
is "unconfined" "$(label --security-opt apparmor=unconfined)" unconfined
is "privileged" "$(label --privileged)" unconfined
has "not loaded" "$(label --security-opt apparmor=nosuch)" 'AppArmor profile "nosuch" is not loaded'
has "mount" "$(corten run --rm --cap-add SYS_ADMIN busybox busybox mount -t tmpfs x /tmp 2>&1)" "ermission denied"
is "mount, unconfined" "$(corten run --rm --cap-add SYS_ADMIN --security-opt apparmor=unconfined busybox busybox mount -t tmpfs x /tmp 2>&1)" ""
printf 'profile vm-mine flags=(attach_disconnected,mediate_deleted) {\n file,\n capability,\n network,\n signal,\n deny /tmp/forbidden w,\n}\n' | apparmor_parser -r || bad "load a profile"
corten run -d --name mine --security-opt apparmor=vm-mine busybox sleep 1000 >/dev/null || bad "run with a profile of the administrator's"
is "one of the administrator's" "$(tr -d '\n' <"/proc/$(pid_of mine)/attr/current")" "vm-mine (enforce)"
has "what it denies, in exec" "$(corten exec mine sh -c 'cat /proc/self/attr/current; echo >/tmp/forbidden' 2>&1)" "vm-mine (enforce)
sh: can't create /tmp/forbidden: Permission denied"
corten rm -f mine >/dev/null
apparmor_parser -R <(echo 'profile vm-mine {}')
is "signals among its own" "$(corten run --rm busybox sh -c 'sleep 100 & kill $!; wait $!; echo $?')" 143

echo "out of memory"
since=$(date +%s)
corten run --name oom --memory 16m --memory-swap 16m busybox tail /dev/zero
is "exit code" $? 137
is "OOMKilled" "$(corten inspect -f '{{.State.OOMKilled}}' oom)" true
corten run --name oomchild --memory 16m --memory-swap 16m busybox sh -c 'tail /dev/zero; exit 3'
is "exit code of who survives" $? 3
is "OOMKilled" "$(corten inspect -f '{{.State.OOMKilled}}' oomchild)" true
corten run --name fine busybox true
is "OOMKilled without" "$(corten inspect -f '{{.State.OOMKilled}}' fine)" false
is "events" "$(corten events --since "$since" --until "$(($(date +%s) + 1))" --filter event=oom --format '{{.Actor.Attributes.name}}' | sort | tr '\n' ' ')" "oom oomchild "
corten rm oom oomchild fine >/dev/null

echo "all processes"
corten run -d --name many --pid host busybox sh -c 'for i in 1 2 3 4 5; do setsid sleep 4242 & done; sleep 4242' >/dev/null
eventually sh -c '[ "$(pgrep -fc "^sleep 4242")" = 6 ]' || bad "$(pgrep -fc '^sleep 4242') processes"
many=$(group_of many)
corten kill many >/dev/null
eventually gone "$many" || bad "$many is still there"
is "left of a killed container that shares the host's processes" "$(pgrep -fc '^sleep 4242')" 0
corten rm many >/dev/null
corten run -d --name nested --privileged busybox sh -c 'mkdir -p /sys/fs/cgroup/a/b; setsid sleep 4243 & sleep 4243' >/dev/null
nested=$(group_of nested)
eventually test -d "$nested/a/b" || bad "no cgroups of its own"
corten rm -f nested >/dev/null || bad "rm -f nested"
eventually gone "$nested" || bad "$nested is still there"

echo "parents"
case $driver in
cgroupfs)
  corten run -d --name par --cgroup-parent /vmtest/sub busybox sleep 1000 >/dev/null || bad "run with a parent"
  has "place" "$(group_of par)" "/sys/fs/cgroup/vmtest/sub/$(corten inspect -f '{{.Id}}' par)"
  corten rm -f par >/dev/null
  rmdir /sys/fs/cgroup/vmtest/sub /sys/fs/cgroup/vmtest || bad "the parents are in use"
  ;;
systemd)
  corten run -d --name par --cgroup-parent vmtest-sub.slice busybox sleep 1000 >/dev/null || bad "run with a parent"
  has "place" "$(group_of par)" "/sys/fs/cgroup/vmtest.slice/vmtest-sub.slice/corten-$(corten inspect -f '{{.Id}}' par).scope"
  corten rm -f par >/dev/null
  has "wrong form" "$(corten run --rm --cgroup-parent /foo busybox true 2>&1)" 'cgroup-parent for systemd cgroup should be a valid slice named as "xxx.slice"'
  systemctl stop vmtest-sub.slice vmtest.slice
  ;;
esac

echo "what cgroup v2 does not have"
has "swappiness" "$(corten run --rm --memory-swappiness 50 busybox true 2>&1)" "Memory swappiness discarded"
has "real-time" "$(corten run --rm --cpu-rt-runtime 1000 busybox true 2>&1)" "kernel does not support CPU real-time scheduler"
has "oom-kill-disable" "$(corten run --rm --oom-kill-disable busybox true 2>&1)" "OomKillDisable discarded"
body='{"Image":"busybox","Cmd":["true"],"HostConfig":{"KernelMemory":52428800}}'
answer=$(exec 3<>/dev/tcp/127.0.0.1/2399; printf 'POST /v1.40/containers/create?name=kmem HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s' ${#body} "$body" >&3; cat <&3)
has "kernel memory" "$answer" "kernel memory limit capabilities or the cgroup is not mounted. Limitation discarded."
corten start kmem >/dev/null || bad "start kmem"
corten rm -f kmem >/dev/null

echo "an engine that comes back"
corten run -d --name stays --memory 64m busybox sleep 1000 >/dev/null
pid=$(pid_of stays) stays=$(group_of stays)
kill -9 $engine; wait $engine 2>/dev/null
[ -d "/proc/$pid" ] || bad "the container ended with its engine"
engine
is "process" "$(pid_of stays)" "$pid"
corten update --memory 32m --memory-swap 32m stays >/dev/null || bad "update"
is memory.max "$(cat "$stays/memory.max")" 33554432
corten rm -f stays >/dev/null || bad "rm -f stays"

kill $engine; wait $engine
is "exit code of the engine" $? 0
after() { [ "$(cgroups)" = "$before" ]; }
eventually after || bad "left behind: $(diff <(echo "$before") <(cgroups))"
mount | grep -F "$dir" && bad "mounts are left"
[ $failures -eq 0 ] || cat "$dir/log"
rm -rf "$dir"
[ $failures -eq 0 ]
