# shellcheck shell=dash
# A script to start from: Debian's nbd-client attaches, ext4, write, sync, unmount, fsck.
set -e
modprobe nbd max_part=0
step() { echo "[$(cut -d' ' -f1 /proc/uptime)] $*"; }
step attach
nbd-client "$HOST" "$PORT" /dev/nbd0 -N "$EXPORT"
for f in size queue/logical_block_size queue/write_cache queue/fua queue/discard_max_bytes; do
	echo "$f $(cat /sys/block/nbd0/$f)"
done
mkfs.ext4 -q -F /dev/nbd0
step mount
mount -t ext4 /dev/nbd0 /mnt
dd if=/dev/urandom of=/mnt/big bs=1M count=16 conv=fsync 2>/dev/null
i=0
while [ $i -lt 100 ]; do
	echo "hello $i" >/mnt/f$i
	i=$((i + 1))
done
sync
sha1sum /mnt/big >/tmp/sum
umount /mnt
echo 3 >/proc/sys/vm/drop_caches
step fsck
fsck.ext4 -fn /dev/nbd0
mount -t ext4 -o ro /dev/nbd0 /mnt
sha1sum -c /tmp/sum
umount /mnt
nbd-client -d /dev/nbd0
step PASS
