# shellcheck shell=dash
# A filesystem over a server that goes away in the middle of writes. The host reads the lines that begin
# with "HOST:" and does what they say: kills the server (kill) or ends it by SIGTERM (term), starts it again.
set -e
modprobe nbd max_part=0
step() { echo "[$(cut -d' ' -f1 /proc/uptime)] $*"; }
fail() {
	step "FAIL $*"
	dmesg | tail -n 20
	exit 3
}

mirror-agent attach /dev/nbd0 --nbd "$HOST:$PORT" --export "$EXPORT" --connections 4 --dead-conn-timeout 5m --timeout 6s &
watch=$!
until [ -e /sys/block/nbd0/pid ]; do
	kill -0 $watch || exit 3
	sleep 0.2
done
mkfs.ext4 -q -F /dev/nbd0
mount -t ext4 /dev/nbd0 /mnt
for round in 1 2 3; do
	end="kill"
	[ $round = 3 ] && end="term"
	rm -f /tmp/stop
	# One that streams, one that fsyncs each file.
	(dd if=/dev/urandom of=/mnt/stream$round bs=64k count=320 conv=fsync 2>/dev/null || touch /tmp/failed) &
	stream=$!
	(
		i=0
		until [ -e /tmp/stop ]; do
			echo "$round $i" | dd of=/mnt/small$round.$i conv=fsync 2>/dev/null || touch /tmp/failed
			i=$((i + 1))
			echo $i >/tmp/count
		done
	) &
	small=$!
	sleep 2
	echo "HOST: $end"
	sleep 2
	before=$(cat /tmp/count)
	sleep 3
	[ "$(cat /tmp/count)" = "$before" ] || fail "an fsync did not wait for the server"
	echo "HOST: start"
	wait $stream
	touch /tmp/stop
	wait $small
	[ "$(cat /tmp/count)" -gt "$before" ] || fail "the writer did not go on"
	[ ! -e /tmp/failed ] || fail "a write failed"
	[ "$(find /mnt -name "small$round.*" | wc -l)" = "$(cat /tmp/count)" ] || fail "files are missing"
	touch /mnt/after$round || fail "the filesystem is not writable any more"
	step "PASS restart $round ($end) after $(cat /tmp/count) fsyncs"
done
sha1sum /mnt/stream* /mnt/small* >/tmp/sum
umount /mnt
echo 3 >/proc/sys/vm/drop_caches
fsck.ext4 -fn /dev/nbd0 || fail "fsck"
mount -t ext4 -o ro /dev/nbd0 /mnt
sha1sum -c /tmp/sum >/tmp/check || { cat /tmp/check; fail "what was written is not there"; }
umount /mnt
dmesg | grep -iE 'i/o error|remounting' && fail "the kernel saw an error"
mirror-agent detach /dev/nbd0
wait $watch || fail "the watch ended with $?"
step "PASS fsck"
exit 0
