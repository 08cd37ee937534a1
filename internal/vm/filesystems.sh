#!/bin/bash
# The engine on file systems other than ext4, and volumes that are file systems of their own: what snapshots and clones share (seen in the file system's own map of extents), that a copy taken while a program
# writes is of one moment, sizes by project quota.
#
#   filesystems.sh       corten and cortend are in the path
set -u
. "$(dirname "$0")/lib.sh"
dir=$(mktemp -d /var/tmp/filesystems.XXXX)
mkdir "$dir/at"
export CORTEN_HOST=unix://$dir/c.sock
engine() {
  cortend -H "$CORTEN_HOST" --data-root "$dir/at/data" --exec-root "$dir/exec" --bridge none --nft-table corten-vm >>"$dir/log" 2>&1 &
  engine=$!
  eventually corten version >/dev/null 2>&1 || { cat "$dir/log"; exit 1; }
}
inside() { corten run --rm --network none "$@" 2>&1; }
# used: kilobytes on the file system of the engine's folder, once all is written
used() { sync -f "$dir/at"; df --output=used -k "$dir/at" | tail -1 | tr -d ' '; }
shared() { filefrag -v "$1" | grep -c shared; }
# format KIND FILE SIZE
format() {
  truncate -s "$3" "$2"
  case $1 in
  xfs) mkfs.xfs -q -m reflink=1 "$2" ;;
  xfs-old) mkfs.xfs -q -m reflink=0 "$2" ;;
  ext4-quota) mkfs.ext4 -q -O project,quota "$2" ;;
  *) "mkfs.$1" -q "$2" >/dev/null ;;
  esac
}

for kind in xfs btrfs xfs-old ext4-quota; do
  echo "the engine's folder on $kind"
  case $kind in *-quota | xfs*) opts=loop,prjquota ;; *) opts=loop ;; esac
  format $kind "$dir/image" 600M && mount -o $opts "$dir/image" "$dir/at" || { bad "mount $kind"; continue; }
  engine
  is "snapshots by" "$(corten info -f '{{.Driver}}')" overlay
  busybox_image
  is "run" "$(inside busybox sh -c 'mkdir /made && echo x >/made/file && rm /bin/date && mv /made /moved && cat /moved/file')" x
  corten run --name job --network none busybox sh -c 'rm /bin/date && mkdir /made && echo y >/made/file && busybox chown 7:8 /made/file' || bad "run job"
  is "diff" "$(corten diff job | tr '\n' ' ')" "C /bin D /bin/date A /made A /made/file "
  corten commit job two >/dev/null || bad "commit"
  is "what was committed" "$(inside two sh -c 'busybox stat -c %u:%g /made/file; ls /bin/date' | tr '\n' ' ')" "7:8 ls: /bin/date: No such file or directory "
  corten rm job >/dev/null

  corten volume create vol >/dev/null || bad "volume create"
  inside -v vol:/v busybox dd if=/dev/urandom of=/v/big bs=1M count=48 >/dev/null
  file=$dir/at/data/volumes/vol/_data/big
  before=$(used)
  corten volume snapshot vol one >/dev/null || bad "snapshot"
  corten volume clone vol copy >/dev/null || bad "clone"
  grown=$(($(used) - before))
  case $kind in
  xfs | btrfs)
    [ "$grown" -lt 4096 ] && say "a snapshot and a clone of 48 MB took $grown KB" || bad "a snapshot and a clone of 48 MB took $grown KB"
    [ "$(shared "$file")" -gt 0 ] && [ "$(shared "$dir/at/data/volumes/copy/_data/big")" -gt 0 ] && say "their extents are shared" || bad "no extent is shared: $(filefrag -v "$file")"
    ;;
  *) [ "$grown" -gt 90000 ] && say "a snapshot and a clone of 48 MB took $grown KB" || bad "a snapshot and a clone of 48 MB took $grown KB" ;;
  esac
  was=$(sha256sum <"$file")
  inside -v vol:/v busybox dd if=/dev/zero of=/v/big bs=1M count=8 conv=notrunc >/dev/null
  is "the clone after its source was changed" "$(sha256sum <"$dir/at/data/volumes/copy/_data/big")" "$was"
  corten volume restore vol one >/dev/null || bad "restore"
  is "the source after its restoration" "$(sha256sum <"$file")" "$was"
  corten volume rm vol copy >/dev/null || bad "volume rm"

  corten volume create -o size=32m small >/dev/null || bad "create with a size"
  case $kind in btrfs) by="ext4 image" ;; *) by="project quota" ;; esac
  is "limited by" "$(corten volume inspect -f '{{.Status.LimitedBy}}' small)" "$by"
  case $kind in ext4-quota) full="Disk quota exceeded" ;; *) full="No space left on device" ;; esac # as each file system words it
  has "filling it" "$(inside -v small:/v busybox dd if=/dev/zero of=/v/x bs=1M count=64 oflag=direct)" "$full"
  size=$(inside -v small:/v busybox busybox stat -c %s /v/x)
  [ "$size" -gt 20000000 ] && [ "$size" -le 33554432 ] && say "it took $size bytes" || bad "it took $size bytes"
  corten volume rm small >/dev/null || bad "volume rm"

  if [ $kind = xfs ]; then
    echo "killed, and started again, on $kind"
    corten run -d --name stays --network none busybox sh -c 'echo here >/file; sleep 10000' >/dev/null || bad "run stays"
    kill -9 "$engine"; wait "$engine" 2>/dev/null
    engine
    is "the container" "$(corten exec stays cat /file)" here
    corten rm -f stays >/dev/null
  fi
  kill "$engine"; wait "$engine"
  is "exit code of the engine" $? 0
  gone_mounts() { ! grep -q " $dir/at/" /proc/mounts; }
  eventually gone_mounts || bad "mounts are left: $(grep " $dir/at/" /proc/mounts)"
  eventually umount "$dir/at" 2>/dev/null || bad "$dir/at is in use: $(umount "$dir/at" 2>&1)"
  rm "$dir/image"
done

for kind in ext4 xfs btrfs; do
  echo "a volume that is a file system of its own: $kind"
  mkdir -p "$dir/at/data"
  engine
  busybox_image
  format $kind "$dir/volume" 320M || bad "format"
  corten volume create -o type=$kind -o o=loop,noatime -o "device=$dir/volume" own >/dev/null || bad "create"
  # Two files that are always written one after the other, with much between them in the directory: at any moment the second is as far as the first, or one line behind.
  corten run -d --name writes --network none -v own:/v busybox sh -c \
    'dd if=/dev/zero of=/v/m bs=1M count=64 2>/dev/null; i=0; while :; do i=$((i+1)); echo $i >>/v/a; echo $i >>/v/z; echo $i >/v/new; busybox mv /v/new /v/last; done' >/dev/null || bad "run writes"
  eventually test -s "$dir/at/data/volumes/own/_data/last" || bad "nothing is written"
  for n in 1 2 3; do
    corten volume snapshot own "s$n" >/dev/null || bad "snapshot $n"
    at=$dir/at/data/volumes/own/_snapshots/s$n
    a=$(tail -1 "$at/a") z=$(tail -1 "$at/z") last=$(cat "$at/last")
    [ "$a" -gt 0 ] && [ $((a - z)) -ge 0 ] && [ $((a - z)) -le 1 ] && [ $((z - last)) -ge 0 ] && [ $((z - last)) -le 1 ] && say "snapshot $n: $a, $z, $last" || bad "snapshot $n is not of one moment: $a, $z, $last"
  done
  was=$(corten exec writes busybox wc -l /v/z | cut -d' ' -f1)
  goes_on() { [ "$(corten exec writes busybox wc -l /v/z | cut -d' ' -f1)" -gt $((was + 5)) ]; }
  eventually goes_on && say "the writer goes on" || bad "the writer stands still"
  # frozen by an engine that is killed then
  corten exec writes dd if=/dev/urandom of=/v/m bs=1M count=96 2>/dev/null
  corten volume clone own half >/dev/null 2>&1 &
  client=$!
  frozen() { grep -q '"Frozen":true' "$dir/at/data/volumes/.records/own.json"; }
  for _ in $(seq 300); do frozen && break; done
  kill -9 "$engine"; wait "$engine" 2>/dev/null; wait "$client"
  frozen && say "the engine was killed while the file system was frozen" || say "the engine was killed too late to be found freezing"
  engine
  was=$(corten exec writes busybox wc -l /v/z | cut -d' ' -f1)
  eventually goes_on && say "the writer goes on after the engine was killed" || bad "the writer stands still after the engine was killed"
  corten rm -f writes >/dev/null || bad "rm"
  corten volume rm own >/dev/null || bad "volume rm"
  corten volume rm half >/dev/null 2>&1
  kill "$engine"; wait "$engine"
  case $kind in
  ext4) e2fsck -fn "$dir/volume" >"$dir/fsck" 2>&1 || bad "e2fsck: $(cat "$dir/fsck")" ;;
  xfs) xfs_repair -n "$dir/volume" >"$dir/fsck" 2>&1 || bad "xfs_repair: $(cat "$dir/fsck")" ;;
  btrfs) btrfs check "$dir/volume" >"$dir/fsck" 2>&1 || bad "btrfs check: $(cat "$dir/fsck")" ;;
  esac
  rm -r "$dir/volume" "$dir/at/data"
done

[ $failures -eq 0 ] || cat "$dir/log"
rm -rf "$dir"
[ $failures -eq 0 ]
