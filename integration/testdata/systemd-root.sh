#!/bin/bash
# systemd-root.sh SCRATCH FILES CGROUP: becomes systemd, which runs nothing, in a root that is this system's own with all
# changes kept in memory. FILES is seen there as /mnt. To be run in namespaces of its own (mount, pid, cgroup, uts, ipc, net).
# Nothing of it is left when the process ends. Status 77: this machine does not let it; the last line says what.
set -eu
scratch=$1 files=$2
missing() {
	echo "$1"
	exit 77
}

ip link set lo up
mount -t tmpfs tmpfs "$scratch" || missing "a tmpfs cannot be mounted"
root=$scratch/root
mkdir "$root" "$scratch/upper" "$scratch/work"
mount -t overlay overlay -o "lowerdir=/,upperdir=$scratch/upper,workdir=$scratch/work" "$root" || missing "an overlay of / cannot be mounted"
mount -t proc proc "$root/proc" || missing "proc cannot be mounted"
mount -t sysfs sysfs "$root/sys" || missing "sysfs cannot be mounted"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup" || missing "cgroup2 cannot be mounted"
for d in run tmp dev; do mount -t tmpfs tmpfs "$root/$d"; done
for n in null zero full random urandom; do
	touch "$root/dev/$n"
	mount --bind "/dev/$n" "$root/dev/$n"
done
ln -s /proc/self/fd "$root/dev/fd"
mount --bind "$files" "$root/mnt"

# What an earlier life of this machine may have installed.
rm -rf "$root/etc/mirror-agent" "$root/var/lib/mirror-agent" "$root/etc/systemd/system" "$root/usr/bin/mirror-agent"
mkdir -p "$root/etc/systemd/system"
rm -f "$root/var/lib/man-db/auto-update" # reading all manual pages anew takes minutes on a busy machine
printf '[Unit]\nDescription=nothing but what the test starts\nDefaultDependencies=no\n' >"$root/etc/systemd/system/only.target"
exec chroot "$root" env -i container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin \
	/lib/systemd/systemd --unit=only.target --log-target=console --log-level=info --show-status=0
