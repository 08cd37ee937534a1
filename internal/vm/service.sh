#!/bin/bash
# The engine as a service of systemd, from docs/cortend.service: its containers survive stop, restart and kill, and go on logging and answering meanwhile.
#
#   service.sh cgroupfs|systemd
set -u
here=$(dirname "$0")
. "$here/lib.sh"
driver=$1
install -D -m755 "$(command -v cortend)" /usr/local/bin/cortend
cp "$here/cortend.service" /etc/systemd/system/
mkdir -p /etc/corten
echo "{\"exec-opts\":[\"native.cgroupdriver=$driver\"]}" >/etc/corten/daemon.json
systemctl daemon-reload
systemctl start cortend || { systemctl status cortend; journalctl -u cortend; exit 1; }
is "service" "$(systemctl is-active cortend)" active
is "the engine answers once the service is started" "$(corten version -f '{{.Server.Version}}' | head -c1)" 0
busybox_image
# It counts in its log, with a bound of memory, so that it has a control group with controllers.
corten run -d --name count --restart always --memory 64m busybox sh -c 'i=0; while true; do i=$((i+1)); echo $i; sleep 0.02; done' >/dev/null || bad "run count"
corten run -d --name web -p 18080:8080 corten/hello serve >/dev/null || bad "run web"
is "open files of a container" "$(corten run --rm busybox sh -c 'ulimit -Sn; ulimit -Hn' | tr '\n' ' ')" "$(systemctl show -p LimitNOFILESoft --value cortend) $(systemctl show -p LimitNOFILE --value cortend) "
is "score of a container when memory runs out" "$(corten run --rm busybox cat /proc/self/oom_score_adj)" 0
corten network create blue >/dev/null || bad "network create"
corten run -d --name asks --network blue busybox sleep 10000 >/dev/null || bad "run asks"
corten run -d --name asked --network blue busybox sleep 10000 >/dev/null || bad "run asked"
count=$(pid_of count) web=$(pid_of web) asks=$(pid_of asks) asked=$(corten inspect -f '{{.NetworkSettings.Networks.blue.IPAddress}}' asked)
answer() { nsenter -t "$asks" -n -m -r -w /bin/nslookup asked 2>&1; } # not by exec, which needs the engine
page() { exec 3<>/dev/tcp/127.0.0.1/18080 && printf 'GET / HTTP/1.0\r\n\r\n' >&3 && grep -q doctype <&3; }
last() { corten logs --tail 1 count | tail -1; } # it may say more while we ask
alive() { # WHEN
  [ -d "/proc/$count" ] && [ -d "/proc/$web" ] && say "$1: both run" || bad "$1: a container ended"
  page && say "$1: the published port answers" || bad "$1: the published port does not answer"
  has "$1: the name of another container" "$(answer)" "$asked"
}
same() { # WHEN
  alive "$1"
  is "$1: process" "$(pid_of count) $(pid_of web)" "$count $web"
  has "$1: ps" "$(corten ps --filter name=count --format '{{.Status}}')" "Up "
  is "$1: exec" "$(corten exec count echo inside)" inside
}
same started
was=$(last)
systemctl restart cortend
same "after restart"
systemctl stop cortend
is "stopped" "$(systemctl is-active cortend)" inactive
alive "while the service is stopped"
systemctl start cortend
same "after stop and start"
old=$(systemctl show -p MainPID --value cortend)
systemctl kill -s KILL --kill-whom=main cortend
alive "while the engine is dead"
fresh() { local p; p=$(systemctl show -p MainPID --value cortend); [ "$p" != 0 ] && [ "$p" != "$old" ] && [ "$(systemctl is-active cortend)" = active ]; }
eventually fresh || bad "systemd did not start the engine again"
same "after kill -9"
[ "$(last)" -gt $((was + 20)) ] && say "log: went on from $was to $(last)" || bad "log: $was, then $(last)"
is "log: no line lost or doubled" "$(corten logs count | awk '$1 != NR { print "line " NR " is " $1; exit }')" ""
systemctl daemon-reload
same "after daemon-reload"
# A unit of somebody's own, which ends all that is in its control group.
mkdir -p /etc/systemd/system/cortend.service.d
printf '[Service]\nKillMode=control-group\n' >/etc/systemd/system/cortend.service.d/own.conf
systemctl daemon-reload
systemctl stop cortend
[ -d "/proc/$count" ] && [ -d "/proc/$web" ] && say "stopped with KillMode=control-group: both run" || bad "stopped with KillMode=control-group: a container ended"
systemctl start cortend
same "after stop and start with KillMode=control-group"
rm -r /etc/systemd/system/cortend.service.d
systemctl daemon-reload
corten rm -f count web asks asked >/dev/null || bad "rm"
corten network rm blue >/dev/null || bad "network rm"
corten rmi busybox >/dev/null || bad "rmi"
systemctl stop cortend
journalctl -u cortend -o cat --no-pager | grep -E 'level=(WARN|ERROR)' && bad "the engine complained"
monitors_gone() { ! pgrep -f '^corten-monitor' >/dev/null; }
eventually monitors_gone || bad "monitors are left: $(pgrep -af '^corten-monitor')"
helpers_gone() { ! pgrep -f '^[^ ]*cortend portproxy' >/dev/null; }
eventually helpers_gone || bad "helpers of the network are left: $(pgrep -af 'cortend portproxy')"
eventually gone /sys/fs/cgroup/system.slice/cortend.service || bad "the service's control group is still there: $(find /sys/fs/cgroup/system.slice/cortend.service -name cgroup.procs -exec cat {} +)"
find /sys/fs/cgroup -type d -name '*-????????????????????????????????????????????????????????????????.scope' | grep . && bad "scopes are left"
rm -rf /var/lib/corten /etc/corten
[ $failures -eq 0 ] || journalctl -u cortend -o cat --no-pager | tail -40
[ $failures -eq 0 ]
