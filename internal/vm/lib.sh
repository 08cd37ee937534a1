# What the checks inside the virtual machine share: an image with busybox, short words for expectations, a count of failures.
failures=0
say() { echo "  $*"; }
bad() { echo "  NOT: $*"; failures=$((failures + 1)); }
# is WHAT GOT WANT
is() { if [ "$2" = "$3" ]; then say "$1: $2"; else bad "$1 is \"$2\", expected \"$3\""; fi; }
# has WHAT TEXT PART
has() { case $2 in *"$3"*) say "$1: …$3…" ;; *) bad "$1 is \"$2\", expected …$3…" ;; esac; }
# eventually COMMAND… waits for what must come; the limit is for slow machines.
eventually() { local end=$((SECONDS + 150)); until "$@"; do [ $SECONDS -lt $end ] || return 1; sleep 0.05; done; }

busybox_image() {
  local root
  root=$(mktemp -d)
  mkdir -p "$root"/{bin,tmp,dev,proc,sys,etc}
  chmod 755 "$root" # mktemp made it for us alone
  cp /bin/busybox "$root/bin/busybox"
  for name in sh echo cat sleep mkdir mknod dd ls tail head touch true grep date setsid nslookup; do ln -s busybox "$root/bin/$name"; done
  tar -C "$root" -c . | corten import - busybox >/dev/null || bad "import busybox"
  rm -rf "$root"
}
pid_of() { corten inspect -f '{{.State.Pid}}' "$1"; }
# group_of CONTAINER: its folder in the v2 tree
group_of() { local p; p=$(pid_of "$1"); echo "/sys/fs/cgroup$(sed -n 's/^0:://p' "/proc/$p/cgroup")"; }
gone() { [ ! -e "$1" ]; }
