# shellcheck shell=dash
# A filesystem in use while the agent's package is upgraded: the host does that when it reads the line "HOST: upgrade".
# Nobody in here is told; writes wait until there are new connections.
set -e
modprobe nbd max_part=0
step() { echo "[$(cut -d' ' -f1 /proc/uptime)] $*"; }
fail() {
	step "FAIL $*"
	dmesg | tail -n 20
	cat /tmp/attach.log
	exit 3
}
count() { cat /tmp/count 2>/dev/null || echo 0; }
more() { # fsyncs
	enough=$(($(count) + $1))
	until [ "$(count)" -ge $enough ]; do
		[ ! -e /tmp/failed ] || fail "a write failed"
		sleep 0.2
	done
}

mirror-agent attach /dev/nbd0 --nbd "$HOST:$PORT" --export "$EXPORT" --connections 4 --dead-conn-timeout 5m --timeout 6s >/tmp/attach.log 2>&1 &
watch=$!
until [ -e /sys/block/nbd0/pid ]; do
	kill -0 $watch || fail "no attach"
	sleep 0.2
done
head -n 1 /tmp/attach.log
mkfs.ext4 -q -F /dev/nbd0
mount -t ext4 /dev/nbd0 /mnt
# One whose next write follows upon the answer of the last, so that there is always one on its way; one that fsyncs each file and
# notes when it had been answered.
(
	until [ -e /tmp/stop ]; do
		dd if=/dev/urandom of=/mnt/stream bs=4k count=1024 oflag=direct conv=fsync 2>/dev/null || touch /tmp/failed
	done
) &
stream=$!
(
	i=0
	until [ -e /tmp/stop ]; do
		echo "line $i" | dd of=/mnt/small.$i conv=fsync 2>/dev/null || touch /tmp/failed
		cut -d' ' -f1 /proc/uptime >>/tmp/times
		i=$((i + 1))
		echo $i >/tmp/count.new
		mv /tmp/count.new /tmp/count
	done
) &
small=$!
more 10
echo "HOST: upgrade"
until grep -q 'links renewed' /tmp/attach.log; do
	kill -0 $watch || fail "the watch has ended"
	[ ! -e /tmp/failed ] || fail "a write failed"
	sleep 0.2
done
more 20
touch /tmp/stop
wait $stream $small
[ ! -e /tmp/failed ] || fail "a write failed"
[ "$(find /mnt -name 'small.*' | wc -l)" = "$(count)" ] || fail "files are missing"
sha1sum /mnt/stream /mnt/small.* >/tmp/sum
umount /mnt
echo 3 >/proc/sys/vm/drop_caches
fsck.ext4 -fn /dev/nbd0 || fail "fsck"
mount -t ext4 -o ro /dev/nbd0 /mnt
sha1sum -c /tmp/sum >/tmp/check || { cat /tmp/check; fail "what was written is not there"; }
umount /mnt
dmesg | grep -iE 'i/o error|remounting' && fail "the kernel saw an error"
mirror-agent detach /dev/nbd0
wait $watch || fail "the watch ended with $?"
grep ' ERR ' /tmp/attach.log && fail "the watch complains"
step "PASS upgrade: $(count) fsyncs, longest pause $(awk 'NR > 1 && $1 - before > longest {longest = $1 - before} {before = $1} END {print longest}' /tmp/times) s"
exit 0
