#!/bin/bash
# Volumes on network file systems, with Debian's own servers: NFS 3 and 4 by nfs-kernel-server, CIFS by samba. Mounted, written, mounted again, with the server gone, and refused.
#
#   shares.sh       corten and cortend are in the path
set -u
. "$(dirname "$0")/lib.sh"
dir=$(mktemp -d /tmp/shares.XXXX)
export CORTEN_HOST=unix://$dir/c.sock
engine() {
  cortend -H "$CORTEN_HOST" --data-root "$dir/data" --exec-root "$dir/exec" --bridge none --nft-table corten-vm >>"$dir/log" 2>&1 &
  engine=$!
  eventually corten version >/dev/null 2>&1 || { cat "$dir/log"; exit 1; }
}
restart() { kill -9 "$engine"; wait "$engine" 2>/dev/null; engine; }
inside() { corten run --rm --network none "$@" 2>&1; }
mounts() { grep -cE " $dir/data/.* (nfs4?|cifs) " /proc/mounts; }
engine
busybox_image

mkdir -p /srv/share /srv/closed
chmod 777 /srv/share
printf '/srv/share 127.0.0.1(rw,no_root_squash,no_subtree_check,fsid=1) ::1(rw,no_root_squash,no_subtree_check,fsid=1)\n/srv/closed 192.0.2.1(rw,no_subtree_check,fsid=2)\n' >/etc/exports
printf '[nfsd]\ngrace-time=10\nlease-time=10\n' >/etc/nfs.conf.d/short.conf # a server that was restarted waits so long for its old clients
systemctl start nfs-server || { journalctl -u nfs-server --no-pager | tail; exit 1; }

for version in 4.2 4.1 4.0 3; do
  echo "NFS $version"
  corten volume create -d local -o type=nfs -o "o=addr=127.0.0.1,nfsvers=$version,rw,soft,timeo=50,retrans=1" -o device=:/srv/share nfs >/dev/null || bad "create"
  is "mounted before it is used" "$(mounts)" 0
  is "writing" "$(inside -v nfs:/v busybox sh -c "echo from $version >/v/file && cat /v/file")" "from $version"
  is "what the server has" "$(cat /srv/share/file)" "from $version"
  is "mounted after its last user" "$(mounts)" 0
  corten run -d --name uses --network none -v nfs:/v busybox sleep 10000 >/dev/null || bad "run uses"
  has "the kernel's own word" "$(grep " $dir/data/" /proc/mounts)" "vers=${version%.0}"
  is "locks" "$(flock -w 20 "$dir/data/volumes/nfs/_data/file" echo locked 2>&1)" locked
  restart
  is "seen after a restart of the engine" "$(corten exec uses cat /v/file)" "from $version"
  corten restart -t 0 uses >/dev/null || bad "restart"
  is "seen after a restart of the container" "$(corten exec uses cat /v/file)" "from $version"
  is "a second container" "$(inside -v nfs:/v:ro busybox sh -c 'cat /v/file; echo x >/v/file')" "from $version
sh: can't create /v/file: Read-only file system"
  is "mounted by two, then one" "$(mounts)" 1
  corten rm -f uses >/dev/null || bad "rm"
  is "mounted after the last one" "$(mounts)" 0
  corten volume rm nfs >/dev/null || bad "volume rm"
done
is "the share after the volumes were removed" "$(ls /srv/share)" file

echo "NFS by a host's name, and over IPv6"
echo '127.0.0.1 nfsserver' >>/etc/hosts
corten volume create -o type=nfs -o o=addr=nfsserver,soft -o device=:/srv/share named >/dev/null
is "by name" "$(inside -v named:/v busybox cat /v/file)" "from 3"
corten volume create -o type=nfs4 -o o=soft -o device=nfsserver:/srv/share named2 >/dev/null
is "by name in the device" "$(inside -v named2:/v busybox cat /v/file)" "from 3"
corten volume create -o type=nfs -o o=addr=::1,nfsvers=4,soft -o 'device=:/srv/share' six >/dev/null
is "by an IPv6 address" "$(inside -v six:/v busybox cat /v/file)" "from 3"
is "in the container alone" "$(inside --mount 'type=volume,dst=/v,volume-driver=local,volume-opt=type=nfs,volume-opt=device=:/srv/share,"volume-opt=o=addr=127.0.0.1,soft"' busybox cat /v/file)" "from 3"
mkdir -p /srv/share/empty && chown 1234:1234 /srv/share/empty
corten volume create -o type=nfs -o o=addr=127.0.0.1,soft -o device=:/srv/share/empty fresh >/dev/null
is "an empty one is filled from the image" "$(inside -v fresh:/bin busybox sh -c 'ls /bin | grep -c .')" "$(ls "$(mktemp -d)" | wc -l | sed 's/0//')$(corten run --rm --network none busybox sh -c 'ls /bin | grep -c .')"
inside -v fresh:/v busybox true
corten volume rm named named2 six fresh >/dev/null || bad "volume rm"

echo "NFS that cannot be mounted"
refused() { # WHAT EXPECTED OPTION…
  local what=$1 want=$2 begin=$SECONDS
  shift 2
  corten volume create "$@" wrong >/dev/null || bad "$what: create"
  has "$what" "$(inside -v wrong:/v busybox true)" "$want"
  [ $((SECONDS - begin)) -lt 60 ] || bad "$what: took $((SECONDS - begin)) s"
  corten volume rm wrong >/dev/null || bad "$what: volume rm"
}
refused "no such export, NFS 4" "no such file or directory" -o type=nfs -o o=addr=127.0.0.1,nfsvers=4,soft -o device=:/srv/nosuch
refused "no such export, NFS 3" "permission denied" -o type=nfs -o o=addr=127.0.0.1,nfsvers=3,soft -o device=:/srv/nosuch
refused "an export for others, NFS 3" "permission denied" -o type=nfs -o o=addr=127.0.0.1,nfsvers=3,soft -o device=:/srv/closed
refused "an unknown option" "invalid argument" -o type=nfs -o o=addr=127.0.0.1,nosuchoption -o device=:/srv/share
refused "no server there" "connection refused" -o type=nfs -o o=addr=127.0.0.1,port=2999,nfsvers=4,soft,timeo=10,retrans=1 -o device=:/srv/share
refused "a name that nobody has" "find the address of nosuch.invalid" -o type=nfs -o o=addr=nosuch.invalid -o device=:/srv/share

echo "NFS whose server goes away"
corten volume create -o type=nfs -o o=addr=127.0.0.1,nfsvers=4.2,soft,timeo=10,retrans=1,lookupcache=none,actimeo=0 -o device=:/srv/share nfs >/dev/null
corten run -d --name uses --network none -v nfs:/v busybox sleep 10000 >/dev/null || bad "run uses"
is "before" "$(corten exec uses cat /v/file)" "from 3"
systemctl stop nfs-server
has "reading without a server" "$(timeout 60 corten exec uses dd if=/v/file of=/dev/null iflag=direct 2>&1)" "error"
corten volume ls -q | grep -q '^nfs$' && say "volumes are listed" || bad "volume ls"
has "inspect" "$(timeout 20 corten volume inspect nfs)" '"device": ":/srv/share"'
timeout 20 corten volume create other >/dev/null && corten volume rm other >/dev/null && say "others are made and removed" || bad "another volume"
restart
is "an engine that comes back meanwhile" "$(timeout 20 corten ps --format '{{.Names}}')" uses
systemctl start nfs-server
reads() { [ "$(timeout 20 corten exec uses cat /v/file 2>/dev/null)" = "from 3" ]; }
eventually reads && say "reading once the server is back" || bad "no reading once the server is back"
systemctl stop nfs-server
timeout 90 corten rm -f uses >/dev/null && say "the container is removed without a server" || bad "rm without a server"
unmounted() { [ "$(mounts)" = 0 ]; }
eventually unmounted || bad "still mounted: $(grep " $dir/data/" /proc/mounts)"
timeout 20 corten volume rm nfs >/dev/null && say "and the volume" || bad "volume rm without a server"

echo "CIFS"
useradd -M -u 4321 keeper 2>/dev/null
secret='se cret,42'
cat >/etc/samba/smb.conf <<'END'
[global]
  map to guest = never
  disable netbios = yes
  smb ports = 445
[share]
  path = /srv/smb
  read only = no
  valid users = keeper
END
mkdir -p /srv/smb && chown keeper /srv/smb
printf '%s\n%s\n' "$secret" "$secret" | smbpasswd -s -a keeper >/dev/null || bad "smbpasswd"
systemctl restart smbd || { journalctl -u smbd --no-pager | tail; exit 1; }
printf 'username=keeper\npassword=%s\n' "$secret" >"$dir/credentials"
chmod 600 "$dir/credentials"
corten volume create -o type=cifs -o "o=credentials=$dir/credentials,uid=1000,gid=1000,file_mode=0640" -o device=//127.0.0.1/share smb >/dev/null || bad "create"
is "writing, as the user that the options say" "$(inside --user 1000:1000 -v smb:/v busybox sh -c 'echo by cifs >/v/file && cat /v/file && busybox stat -c "%u:%g %a" /v/file')" "by cifs
1000:1000 640"
is "what the server has" "$(cat /srv/smb/file) $(stat -c %U /srv/smb/file)" "by cifs keeper"
is "mounted after its last user" "$(mounts)" 0
corten run -d --name uses --network none -v smb:/v busybox sleep 10000 >/dev/null || bad "run uses"
restart
is "seen after a restart of the engine" "$(corten exec uses cat /v/file)" "by cifs"
case $(grep cifs /proc/mounts) in *cret*) bad "the kernel's mounts tell the password" ;; esac
has "without a password in what inspect shows" "$(corten volume inspect smb)" "credentials=$dir/credentials"
corten rm -f uses >/dev/null || bad "rm"
corten volume rm smb >/dev/null || bad "volume rm"
corten volume create -o type=cifs -o "o=addr=127.0.0.1,username=keeper,password=wrongpw" -o device=//nfsserver/share smb >/dev/null || bad "create"
refusal=$(inside -v smb:/v busybox true)
has "a wrong password" "$refusal" "permission denied"
case $refusal in *wrongpw*) bad "the refusal tells the password: $refusal" ;; *) say "the refusal does not tell it" ;; esac
corten volume rm smb >/dev/null || bad "volume rm"
corten volume create -o type=cifs -o "o=username=keeper,password=${secret/,/,,}" -o device=//127.0.0.1/nosuch smb >/dev/null || bad "create"
has "no such share" "$(inside -v smb:/v busybox true)" "no such file or directory"
corten volume rm smb >/dev/null || bad "volume rm"
corten volume create -o type=cifs -o "o=username=keeper,password=${secret/,/,,}" -o device=//nfsserver/share smb >/dev/null || bad "create"
is "password as an option" "$(inside -v smb:/v busybox cat /v/file)" "by cifs"
systemctl stop smbd
has "without a server" "$(inside -v smb:/v busybox true)" "connection refused"
grep -qE 'cret,|wrongpw' "$dir/log" && bad "the engine's log tells a password: $(grep -E 'cret|wrongpw' "$dir/log")" || say "no password in the engine's log"
corten volume rm smb >/dev/null || bad "volume rm"

kill "$engine"; wait "$engine"
is "exit code of the engine" $? 0
is "mounts that are left" "$(mounts)" 0
[ $failures -eq 0 ] || cat "$dir/log"
rm -rf "$dir"
[ $failures -eq 0 ]
