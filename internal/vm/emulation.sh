#!/bin/bash
# Programs of another architecture: builds and containers for arm64, by an emulator that the kernel knows, and without one. A container of the build machine may register none, so that this
# is tried here only.
set -u
. "$(dirname "$0")/lib.sh"
dir=$(mktemp -d /tmp/emulation.XXXX)
export CORTEN_HOST=unix://$dir/c.sock
echo '{}' >"$dir/daemon.json"
cortend -H "$CORTEN_HOST" --data-root "$dir/data" --exec-root "$dir/exec" --bridge ctnvm0 --bip 10.213.8.1/24 --nft-table corten-vm --config-file "$dir/daemon.json" >>"$dir/log" 2>&1 &
engine=$!
eventually corten version >/dev/null 2>&1 || { cat "$dir/log"; bad "the engine does not serve"; exit 1; }
busybox_image # the host's own

mkdir -p "$dir/arm" "$dir/both"
cp /payload/emulation/busybox "$dir/arm/busybox"
cat >"$dir/arm/Dockerfile" <<'END'
FROM scratch
COPY busybox /bin/busybox
WORKDIR /tmp
ENV PATH=/bin
END
cat >"$dir/both/Dockerfile" <<'END'
ARG BASE
FROM $BASE
ARG TARGETARCH
RUN ["/bin/busybox", "sh", "-c", "busybox echo $(busybox uname -m) $TARGETARCH > /what; busybox cat /what"]
CMD ["/bin/busybox", "cat", "/what"]
END
build() { corten build --progress plain --build-arg BASE=arm "$@" "$dir/both" 2>&1; }

echo "without an emulator"
corten build -q --platform linux/arm64 -t arm "$dir/arm" >/dev/null || bad "an image for arm64 without a RUN is not built"
has "platforms" "$(corten buildx inspect | grep Platforms)" linux/amd64
case $(corten buildx inspect) in *arm64*) bad "arm64 is named without an emulator" ;; esac
has "a RUN of arm64" "$(build --platform linux/arm64)" "no emulator is registered"
has "a container of arm64" "$(corten run --rm --platform linux/arm64 arm busybox uname -m 2>&1)" "exec format error"

echo "with one"
modprobe binfmt_misc
[ -e /proc/sys/fs/binfmt_misc/register ] || mount -t binfmt_misc none /proc/sys/fs/binfmt_misc || bad "binfmt_misc is not there"
magic='\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00' mask='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
register() { echo ":qemu-aarch64:M::$magic:$mask:/payload/emulation/qemu-aarch64:$1" >/proc/sys/fs/binfmt_misc/register || bad "register the emulator"; }
register FPOC
has "platforms" "$(corten buildx inspect | grep Platforms)" linux/arm64
out=$(build --platform linux/arm64 -t arm:built)
has "the RUN" "$out" "aarch64 arm64"
is "the container" "$(corten run --rm --platform linux/arm64 arm:built 2>&1)" "aarch64 arm64"
is "its platform" "$(corten image inspect -f '{{.Os}}/{{.Architecture}}' arm:built)" linux/arm64
is "a container without --platform" "$(corten run --rm arm:built 2>/dev/null)" "aarch64 arm64"
is "an exit code" "$(corten run --rm --platform linux/arm64 arm busybox sh -c 'exit 7' >/dev/null 2>&1; echo $?)" 7
name=$(corten run -d --platform linux/arm64 arm busybox sleep 1000)
is "a program in the container" "$(corten exec "$name" busybox uname -m 2>&1)" aarch64
corten rm -f "$name" >/dev/null
has "the same again" "$(build --platform linux/arm64 -t arm:built)" CACHED

echo "both at once"
cat >"$dir/both/Dockerfile.both" <<'END'
FROM arm AS base-arm64
FROM --platform=linux/amd64 busybox AS base-amd64
FROM base-$TARGETARCH
RUN ["/bin/busybox", "sh", "-c", "busybox uname -m > /what"]
CMD ["/bin/busybox", "cat", "/what"]
END
corten build -q --platform linux/amd64,linux/arm64 -t both -f "$dir/both/Dockerfile.both" "$dir/both" >/dev/null 2>"$dir/err" || bad "a build for both: $(cat "$dir/err")"
is "this host's" "$(corten run --rm both 2>&1)" x86_64
is "the other" "$(corten run --rm --platform linux/arm64 both 2>&1)" aarch64

echo "an emulator that is found by its path only"
echo -1 >/proc/sys/fs/binfmt_misc/qemu-aarch64
register ""
out=$(build --no-cache --platform linux/arm64)
has "the RUN" "$out" "ERROR"
say "$(echo "$out" | tail -1)"

echo "gone again"
echo -1 >/proc/sys/fs/binfmt_misc/qemu-aarch64
has "a RUN of arm64" "$(build --no-cache --platform linux/arm64)" "no emulator is registered"
kill $engine
wait $engine
[ $failures -eq 0 ]
