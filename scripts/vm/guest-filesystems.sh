# shellcheck shell=dash
# Our own attach over several connections: ext4, xfs, btrfs with writes, fsync, trim and fsck;
# then the same export by Debian's nbd-client. The host looks at what its device takes on the lines that begin with "HOST:".
set -e
step() { echo "[$(cut -d' ' -f1 /proc/uptime)] $*"; }
order() {
	echo "HOST: $1"
	read -r _ </dev/ttyS0
}

# A kernel without its nbd module: what to do is said, by whoever is asked.
for command in "attach /dev/nbd0 --nbd $HOST:$PORT --export $EXPORT" "detach /dev/nbd0"; do
	status=0
	# shellcheck disable=SC2086 # one word per argument
	mirror-agent $command >/tmp/said 2>&1 || status=$?
	echo "without a module: ${command%% *}: exit status $status: $(cat /tmp/said)"
done
modprobe nbd max_part=0

fresh() {
	case $1 in
	ext4) mkfs.ext4 -q -F /dev/nbd0 ;;
	xfs) mkfs.xfs -q -f /dev/nbd0 ;;
	btrfs) mkfs.btrfs -q -f /dev/nbd0 ;;
	esac
}

check() {
	case $1 in
	ext4) fsck.ext4 -fn /dev/nbd0 ;;
	xfs) xfs_repair -n /dev/nbd0 ;;
	btrfs) btrfs check /dev/nbd0 ;;
	esac >/tmp/check 2>&1 || { cat /tmp/check; exit 3; }
}

mirror-agent attach /dev/nbd0 --nbd "$HOST:$PORT" --export "$EXPORT" --connections 4 --once
for f in size queue/logical_block_size queue/write_cache queue/fua queue/discard_max_bytes backend; do
	echo "$f $(cat /sys/block/nbd0/$f)"
done
for fs in ext4 xfs btrfs; do
	fresh $fs
	mount -t $fs /dev/nbd0 /mnt
	dd if=/dev/urandom of=/mnt/random bs=1M count=12 conv=fsync 2>/dev/null
	i=0
	while [ $i -lt 60 ]; do
		echo "hello $i" >/mnt/f$i
		i=$((i + 1))
	done
	dd if=/dev/urandom of=/mnt/gone bs=1M count=16 conv=fsync 2>/dev/null
	sync
	order "filled $fs"
	rm /mnt/f1* /mnt/gone
	sync
	fstrim -v /mnt
	sync
	order "trimmed $fs"
	sha1sum /mnt/random >/tmp/sum
	if mirror-agent detach /dev/nbd0; then exit 4; fi # in use: refused
	umount /mnt
	echo 3 >/proc/sys/vm/drop_caches
	check $fs
	mount -t $fs -o ro /dev/nbd0 /mnt
	sha1sum -c /tmp/sum
	umount /mnt
	step "PASS $fs"
done
mirror-agent detach /dev/nbd0
[ ! -e /sys/block/nbd0/pid ]

nbd-client "$HOST" "$PORT" /dev/nbd0 -N "$EXPORT" -C 4 2>&1 | tail -n 1
fresh ext4
mount -t ext4 /dev/nbd0 /mnt
dd if=/dev/urandom of=/mnt/random bs=1M count=8 conv=fsync 2>/dev/null
sha1sum /mnt/random >/tmp/sum
umount /mnt
echo 3 >/proc/sys/vm/drop_caches
check ext4
mount -t ext4 -o ro /dev/nbd0 /mnt
sha1sum -c /tmp/sum
umount /mnt
nbd-client -d /dev/nbd0
step "PASS nbd-client"
dmesg | grep -i 'i/o error' && exit 5
exit 0
