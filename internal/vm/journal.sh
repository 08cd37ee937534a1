#!/bin/bash
# The log drivers that need systemd: journald with the journal itself, syslog with the socket that journald listens on for local programs (/dev/log).
#
#   journal.sh      corten and cortend are in the path
set -u
. "$(dirname "$0")/lib.sh"
dir=$(mktemp -d /tmp/journal.XXXX)
export CORTEN_HOST=unix://$dir/c.sock
engine() {
  cortend -H "$CORTEN_HOST" --data-root "$dir/data" --exec-root "$dir/exec" --bridge none --nft-table corten-vm >>"$dir/log" 2>&1 &
  engine=$!
  eventually corten version >/dev/null 2>&1 || { cat "$dir/log"; exit 1; }
}
engine
busybox_image
# entries MATCH… FIELD: the values of a field, one a line
entries() { journalctl -q --no-pager -o cat "$@"; }
idle() { [ "$(corten inspect -f '{{(index .LogDestinations 0).State}}' "$1")" = idle ]; }

echo "journald"
corten run --name jour --network none --log-driver journald --log-opt tag='{{.Name}}/x' --log-opt labels=com.example.team --label com.example.team=blue busybox \
  sh -c 'echo to stdout; echo to stderr >&2; echo; head -c 20000 /dev/zero | tr "\0" x; echo' >/dev/null || bad "run jour"
eventually idle jour || bad "not everything was handed on: $(corten inspect -f '{{json .LogDestinations}}' jour)"
journalctl --sync
id=$(corten inspect -f '{{.Id}}' jour)
is "message of stdout" "$(entries CONTAINER_NAME=jour PRIORITY=6 | grep -c '^to stdout$')" 1
is "message of stderr" "$(entries CONTAINER_NAME=jour PRIORITY=3)" "to stderr"
is "by full id" "$(entries "CONTAINER_ID_FULL=$id" | grep -c '^to std')" 2
is "by short id" "$(entries "CONTAINER_ID=${id:0:12}" | grep -c '^to std')" 2
is "by tag" "$(entries CONTAINER_TAG=jour/x | grep -c '^to std')" 2
is "by identifier" "$(journalctl -q --no-pager -o cat -t jour/x | grep -c '^to std')" 2
is "by image" "$(entries IMAGE_NAME=busybox | grep -c '^to std')" 2
is "by label" "$(entries COM_EXAMPLE_TEAM=blue | grep -c '^to std')" 2
is "pieces of a long line" "$(journalctl -q --no-pager -a -o json CONTAINER_NAME=jour CONTAINER_PARTIAL_ORDINAL=1 + CONTAINER_PARTIAL_ORDINAL=2 | grep -c CONTAINER_PARTIAL_LAST)" 2
is "first piece" "$(entries CONTAINER_NAME=jour CONTAINER_PARTIAL_MESSAGE=true | tr -d '\n' | wc -c)" 16384
is "corten logs" "$(corten logs jour 2>/dev/null | head -1)" "to stdout"

echo "a journal that is restarted while a container talks"
corten run -d --name talk --network none --log-driver journald busybox sh -c 'i=0; while [ $i -lt 300 ]; do i=$((i+1)); echo "line $i"; sleep 0.02; done' >/dev/null || bad "run talk"
sleep 1
systemctl restart systemd-journald
kill -9 "$engine"
wait "$engine" 2>/dev/null
engine
corten wait talk >/dev/null
eventually idle talk || bad "not everything was handed on: $(corten inspect -f '{{json .LogDestinations}}' talk)"
journalctl --sync
is "lines in the journal, each at least once" "$(entries CONTAINER_NAME=talk | sort -u | wc -l)" 300

echo "what is too large for a datagram"
corten run --name big --network none --log-driver journald --log-opt labels=big --label big="$(head -c 100000 /dev/zero | tr '\0' y)" busybox echo large >/dev/null || bad "run big"
eventually idle big || bad "not everything was handed on: $(corten inspect -f '{{json .LogDestinations}}' big)"
journalctl --sync
is "a large entry" "$(entries CONTAINER_NAME=big)" large

echo "syslog, here"
corten run --name sys --network none --log-driver syslog --log-opt tag=sysx busybox echo by syslog >/dev/null || bad "run sys"
eventually idle sys || bad "not everything was handed on: $(corten inspect -f '{{json .LogDestinations}}' sys)"
journalctl --sync
is "message by /dev/log" "$(journalctl -q --no-pager -o cat -t sysx)" "by syslog"
is "its facility" "$(journalctl -q --no-pager -o json -t sysx | grep -o '"SYSLOG_FACILITY":"[0-9]*"')" '"SYSLOG_FACILITY":"3"'
corten rm -f jour talk big sys >/dev/null || bad "rm"
kill "$engine"
wait "$engine" 2>/dev/null
[ $failures -eq 0 ] || { tail -20 "$dir/log"; exit 1; }
