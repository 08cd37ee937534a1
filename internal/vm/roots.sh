# The Debian roots of the virtual machines. Each is made once by debootstrap and kept in $cache under a name that says by which recipe.
#
#	cloud     Debian's cloud kernel, and little more
#	servers   Debian's ordinary kernel, with servers for NFS and SMB, the tools of other file systems, and a policy for SELinux

# A recipe is a list of packages and a function prepare_KIND beside what all have in common, make_root; a change of any makes the roots anew.
packages_cloud=linux-image-cloud-amd64
packages_servers=linux-image-amd64,nfs-kernel-server,samba,xfsprogs,btrfs-progs,selinux-policy-default,policycoreutils,selinux-utils

# root_of KIND: the image's path, made when it is not there. Beside it lie KIND's vmlinuz-… and initrd-….
root_of() {
  local kind=$1 packages=packages_$1 sum
  sum=$({ declare -f make_root prepare_cloud prepare_servers units; echo "${!packages}"; [ "$kind" = cloud ] || cat internal/vm/container.cil; } | sha256sum | head -c 12)
  stem=$kind-$sum
  [ -s "$cache/$stem.img" ] && return
  echo "vm: making the Debian root $kind (once)"
  make_root "$kind" "${!packages}"
}

make_root() { # KIND PACKAGES
  local root=$cache/$1.tmp
  rm -rf "$root"
  debootstrap --variant=minbase --include="systemd-sysv,dbus,initramfs-tools,busybox-static,iproute2,nftables,procps,apparmor,$2" bookworm "$root" >"$cache/debootstrap.log" 2>&1 ||
    { tail -5 "$cache/debootstrap.log" >&2; return 1; }
  printf 'corten-vm\n' >"$root/etc/hostname"
  # The context is for SELinux, and is left out where there is none.
  printf '/dev/vda / ext4 defaults 0 1\n/dev/vdb /payload ext4 ro,context=system_u:object_r:bin_t:s0 0 0\n' >"$root/etc/fstab"
  mkdir -p "$root/payload"
  units "$root"
  # What the virtual machine's disk needs, and no more: the kernel unpacks it under emulation.
  echo MODULES=list >"$root/etc/initramfs-tools/conf.d/vm"
  printf 'virtio_pci\nvirtio_blk\next4\ncrc32c_generic\n' >>"$root/etc/initramfs-tools/modules"
  mount -t proc proc "$root/proc"
  chroot "$root" update-initramfs -u >>"$cache/debootstrap.log" 2>&1 && "prepare_$1" "$root" >>"$cache/debootstrap.log" 2>&1 ||
    { umount "$root/proc"; tail -5 "$cache/debootstrap.log" >&2; return 1; }
  umount "$root/proc"
  rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/usr/share/{doc,man,locale}
  rm -f "$cache/$1"-*
  cp "$root"/boot/vmlinuz-* "$cache/$stem.vmlinuz"
  cp "$root"/boot/initrd.img-* "$cache/$stem.initrd"
  mke2fs -q -t ext4 -d "$root" "$cache/$stem.tmp" 4G
  rm -rf "$root"
  mv "$cache/$stem.tmp" "$cache/$stem.img"
}

# units has the root start the tests and little else.
units() {
  local root=$1 unit
  cat >"$root/etc/systemd/system/corten-test.service" <<'UNIT'
[Unit]
Description=Corten's tests
After=multi-user.target dbus.service
RequiresMountsFor=/payload
[Service]
Type=oneshot
ExecStart=/payload/guest
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0
Environment=HOME=/root
Delegate=yes
[Install]
WantedBy=multi-user.target
UNIT
  mkdir -p "$root/etc/systemd/system/multi-user.target.wants"
  ln -sf ../corten-test.service "$root/etc/systemd/system/multi-user.target.wants/corten-test.service"
  for unit in apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer dpkg-db-backup.timer systemd-timesyncd.service serial-getty@ttyS0.service getty@tty1.service; do
    ln -sf /dev/null "$root/etc/systemd/system/$unit"
  done
}

prepare_cloud() { :; }

# prepare_servers: servers are started by the tests; the policy learns of containers, and all files get its labels.
prepare_servers() {
  local unit
  for unit in nfs-server rpcbind.service rpcbind.socket nfs-client.target nfs-blkmap smbd nmbd samba-ad-dc; do chroot "$1" systemctl disable -q $unit; done
  cp internal/vm/container.cil "$1/root/"
  chroot "$1" semodule -n -s default -i /root/container.cil
  chroot "$1" setfiles -m /etc/selinux/default/contexts/files/file_contexts /
}
