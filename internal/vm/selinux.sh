#!/bin/bash
# Labels of containers, with SELinux enforcing and a policy that knows them (container.cil).
#
#   selinux.sh       corten and cortend are in the path
set -u
. "$(dirname "$0")/lib.sh"
dir=$(mktemp -d /var/lib/selinux-test.XXXX)
export CORTEN_HOST=unix://$dir/c.sock
engine() {
  cortend -H "$CORTEN_HOST" --data-root "$dir/data" --exec-root "$dir/exec" --bridge none --nft-table corten-vm >>"$dir/log" 2>&1 &
  engine=$!
  eventually corten version >/dev/null 2>&1 || { cat "$dir/log"; exit 1; }
}
inside() { corten run --rm --network none "$@" 2>&1; }
label() { tr -d '\0' <"/proc/$(pid_of "$1")/attr/current"; }
label_of() { stat -c %C "$1"; }
setenforce 1 || exit 1
dmesg -C
engine
busybox_image
has "info" "$(corten info -f '{{.SecurityOptions}}')" name=selinux

echo "labels of two containers"
corten run -d --name one --network none busybox sleep 10000 >/dev/null || bad "run one"
corten run -d --name two --network none busybox sleep 10000 >/dev/null || bad "run two"
one=$(label one) two=$(label two)
has "a container's processes" "$one" "system_u:system_r:container_t:s0:c"
[ "$one" != "$two" ] && say "another has other categories: $two" || bad "two containers share their categories: $one"
is "exec" "$(corten exec one cat /proc/self/attr/current | tr -d '\0')" "$one"
is "inspect" "$(corten inspect -f '{{.ProcessLabel}}' one)" "$one"
categories=${one#*:s0:}
corten exec one sh -c 'echo x >/tmp/file; echo y >/dev/shm/file' || bad "writing in its own root"
root=/proc/$(pid_of one)/root
for path in /tmp/file /bin/busybox /dev/shm /dev/shm/file /dev/mqueue /dev/pts; do
  is "$path" "$(label_of "$root$path")" "system_u:object_r:container_file_t:s0:$categories"
done
is "hosts, which others may read" "$(label_of "$root/etc/hosts")" "system_u:object_r:container_file_t:s0"
kill -9 "$engine"; wait "$engine" 2>/dev/null
engine
is "exec after the engine was killed" "$(corten exec one cat /proc/self/attr/current | tr -d '\0')" "$one"
corten restart -t 0 one >/dev/null || bad "restart"
is "after a restart" "$(label one)" "$one"
is "what it wrote, after a restart" "$(corten exec one cat /tmp/file)" x
corten commit one kept >/dev/null || bad "commit"
is "what was committed, in another container" "$(inside kept cat /tmp/file)" x

echo "mounts of the host"
mkdir -p /srv/for && echo hello >/srv/for/file
has "without a label" "$(inside -v /srv/for:/v busybox cat /v/file)" "ermission denied"
is "private" "$(inside -v /srv/for:/v:Z busybox sh -c 'echo more >>/v/file; cat /v/file' | tr '\n' ' ')" "hello more "
has "its label" "$(label_of /srv/for/file)" "system_u:object_r:container_file_t:s0:c"
has "private to another" "$(inside -v /srv/for:/v busybox cat /v/file)" "ermission denied"
is "shared" "$(inside -v /srv/for:/v:z busybox cat /v/file | tr '\n' ' ')" "hello more "
is "its label" "$(label_of /srv/for/file)" "system_u:object_r:container_file_t:s0"
is "shared with another" "$(inside -v /srv/for:/v busybox cat /v/file | tr '\n' ' ')" "hello more "
has "a folder of the system" "$(inside -v /etc:/v:Z busybox true)" "not allowed"
has "the same, by its label" "$(label_of /etc)" etc_t

echo "volumes"
is "of one container" "$(inside -v vol:/v busybox sh -c 'echo kept >/v/file; cat /v/file')" kept
is "of another" "$(inside -v vol:/v busybox cat /v/file)" kept
is "tmpfs" "$(inside --tmpfs /t busybox sh -c 'echo t >/t/x; cat /t/x')" t

echo "options"
is "level" "$(inside --security-opt label=level:s0:c100,c200 busybox cat /proc/self/attr/current | tr -d '\0')" "system_u:system_r:container_t:s0:c100,c200"
has "a type that the policy lacks" "$(inside --security-opt label=type:nosuch_t busybox true)" 'the SELinux policy of this host does not take "system_u:system_r:nosuch_t:s0:'
has "a word that is none" "$(inside --security-opt label=nosuch:x busybox true)" 'bad label option "nosuch:x"'
own=$(tr -d '\0' </proc/self/attr/current)
for how in "--security-opt label=disable" --privileged "--pid host"; do
  # shellcheck disable=SC2086
  is "not confined with $how" "$(inside $how busybox cat /proc/self/attr/current | tr -d '\0')" "$own"
done
is "with another's processes" "$(inside --pid container:one busybox cat /proc/self/attr/current | tr -d '\0')" "$one"

echo "builds"
printf 'FROM busybox\nRUN cat /proc/self/attr/current >/label && echo made >/made\nRUN --mount=type=cache,target=/c echo c >/c/file && cat /made\nRUN --mount=type=tmpfs,target=/t echo t >/t/file\n' >"$dir/Dockerfile"
corten build -q -t made -f "$dir/Dockerfile" "$dir" >/dev/null || bad "build: $(corten build -t made -f "$dir/Dockerfile" "$dir" 2>&1 | tail -20)"
has "a step's label" "$(inside made cat /label | tr -d '\0')" "system_u:system_r:container_t:s0:c"
is "what a step made" "$(inside made cat /made)" made

corten rm -f one two >/dev/null || bad "rm"
kill "$engine"; wait "$engine"
is "exit code of the engine" $? 0
[ $failures -eq 0 ] || { cat "$dir/log"; dmesg | grep 'avc:.*container' | sed 's/.*avc: //' | sort | uniq | head -40; }
setenforce 0
rm -rf "$dir"
[ $failures -eq 0 ]
