# shellcheck shell=dash
# The filesystem FILESYSTEM over a server that goes away in the middle of writes, syncs and trims, once for each word of ENDS.
# The host reads the lines that begin with "HOST:" and does what they say: kills the server (kill) or ends it by SIGTERM (term), starts it again.
set -e
modprobe nbd max_part=0
step() { echo "[$(cut -d' ' -f1 /proc/uptime)] $*"; }
fail() {
	step "FAIL $FILESYSTEM: $*"
	dmesg | tail -n 20
	exit 3
}
order() {
	echo "HOST: $1"
	read -r _ </dev/ttyS0
}
fresh() {
	case $FILESYSTEM in
	ext4) mkfs.ext4 -q -F /dev/nbd0 ;;
	xfs) mkfs.xfs -q -f /dev/nbd0 ;;
	btrfs) mkfs.btrfs -q -f /dev/nbd0 ;;
	esac
}
check() {
	case $FILESYSTEM in
	ext4) fsck.ext4 -fn /dev/nbd0 ;;
	xfs) xfs_repair -n /dev/nbd0 ;;
	btrfs) btrfs check /dev/nbd0 ;;
	esac >/tmp/check 2>&1 || { cat /tmp/check; fail "its own check"; }
}
count() { cat "/tmp/$1" 2>/dev/null || echo 0; }

mirror-agent attach /dev/nbd0 --nbd "$HOST:$PORT" --export "$EXPORT" --connections 4 --dead-conn-timeout 5m --timeout 6s &
watch=$!
until [ -e /sys/block/nbd0/pid ]; do
	kill -0 $watch || exit 3
	sleep 0.2
done
fresh
mount -t "$FILESYSTEM" /dev/nbd0 /mnt
round=0
for end in $ENDS; do
	round=$((round + 1))
	rm -f /tmp/stop /tmp/fsyncs /tmp/trims
	# One that streams, one that fsyncs each file, one that removes what it wrote and trims.
	(dd if=/dev/urandom of=/mnt/stream$round bs=64k count=320 conv=fsync 2>/dev/null || touch /tmp/failed) &
	stream=$!
	(
		i=0
		until [ -e /tmp/stop ]; do
			echo "$round $i" | dd of=/mnt/small$round.$i conv=fsync 2>/dev/null || touch /tmp/failed
			i=$((i + 1))
			echo $i >/tmp/fsyncs
		done
	) &
	small=$!
	(
		i=0
		until [ -e /tmp/stop ]; do
			dd if=/dev/urandom of=/mnt/gone bs=64k count=16 conv=fsync 2>/dev/null || touch /tmp/failed
			rm /mnt/gone
			fstrim /mnt || touch /tmp/failed
			i=$((i + 1))
			echo $i >/tmp/trims
		done
	) &
	trim=$!
	# All three are at it: one trim was answered, and the next is under way or not far.
	until [ "$(count trims)" -ge 1 ] && [ "$(count fsyncs)" -ge 2 ]; do
		[ ! -e /tmp/failed ] || fail "a write failed before the server went"
		sleep 0.1
	done
	order "$end"
	sleep 2
	before=$(count fsyncs)
	sleep 3
	[ "$(count fsyncs)" = "$before" ] || fail "an fsync did not wait for the server"
	trims=$(count trims)
	order start
	wait $stream
	# Until both of the others have gone on after it.
	until [ "$(count fsyncs)" -gt "$before" ] && [ "$(count trims)" -gt "$trims" ]; do
		[ ! -e /tmp/failed ] || fail "a write failed"
		sleep 0.1
	done
	touch /tmp/stop
	wait $small
	wait $trim
	[ ! -e /tmp/failed ] || fail "a write failed"
	[ "$(find /mnt -name "small$round.*" | wc -l)" = "$(count fsyncs)" ] || fail "files are missing"
	touch /mnt/after$round || fail "the filesystem is not writable any more"
	step "PASS $FILESYSTEM restart $round ($end) after $(count fsyncs) fsyncs, $(count trims) trims"
done
sha1sum /mnt/stream* /mnt/small* >/tmp/sum
umount /mnt
echo 3 >/proc/sys/vm/drop_caches
check
mount -t "$FILESYSTEM" -o ro /dev/nbd0 /mnt
sha1sum -c /tmp/sum >/tmp/check || { cat /tmp/check; fail "what was written is not there"; }
for r in $(seq $round); do
	i=0
	for f in /mnt/small"$r".*; do
		[ "$(cat "$f")" = "$r ${f##*.}" ] || fail "$f holds $(cat "$f")"
		i=$((i + 1))
	done
	[ $i -gt 0 ] || fail "no files of round $r"
done
umount /mnt
dmesg | grep -iE 'i/o error|remounting' && fail "the kernel saw an error"
mirror-agent detach /dev/nbd0
wait $watch || fail "the watch ended with $?"
step "PASS $FILESYSTEM check"
exit 0
