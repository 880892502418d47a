#!/bin/busybox sh
# shellcheck shell=dash
# The guest's first process: devices, network, the job, off.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/ NO_COLOR=1 DM_DISABLE_UDEV=1
/bin/busybox --install -s /bin
ln -sf /bin/busybox /sbin/modprobe
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
mount -t tmpfs run /run
mkdir -p /dev/shm
mount -t tmpfs shm /dev/shm
ln -sf /proc/self/mounts /etc/mtab
echo 'root:x:0:0:root:/:/bin/sh' >/etc/passwd
echo '127.0.0.1 localhost' >/etc/hosts
for m in virtio_pci virtio_net virtio_blk; do modprobe -q "$m"; done
ip link set lo up
ip link set eth0 up && ip addr add 10.0.2.15/24 dev eth0 && ip route add default via 10.0.2.2
# shellcheck source=/dev/null
. /job.env
echo "GUEST-UP $(uname -r) after $(cut -d' ' -f1 /proc/uptime) s"
sh /job.sh </dev/null
echo "GUEST-STATUS=$? after $(cut -d' ' -f1 /proc/uptime) s"
sync
poweroff -f
