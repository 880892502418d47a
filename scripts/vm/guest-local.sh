# shellcheck shell=dash
# The agent in the guest itself: found by its name and by its control socket, attached over a unix
# socket, ended by SIGTERM under a mounted filesystem; and a server that stays away for too long.
set -e
modprobe nbd max_part=0
step() { echo "[$(cut -d' ' -f1 /proc/uptime)] $*"; }
fail() {
	step "FAIL $*"
	dmesg | tail -n 20
	tail -n 20 /tmp/agent.log
	exit 3
}
agent() {
	mirror-agent source --name small --device /tmp/small.img --size 48MiB --nbd "$1" >>/tmp/agent.log 2>&1 &
	agent=$!
	until mirror-agent status --name small --json 2>/dev/null | grep -q '"address": *"'; do
		kill -0 $agent 2>/dev/null || fail "the agent does not run"
		sleep 0.2
	done
}
attach() {
	mirror-agent attach /dev/nbd0 --timeout 2s "$@" >/tmp/attach.log 2>&1 &
	watch=$!
	until grep -q '^/dev/nbd0: ' /tmp/attach.log; do
		kill -0 $watch 2>/dev/null || fail "no attach: $(cat /tmp/attach.log)"
		sleep 0.2
	done
	head -n 1 /tmp/attach.log
}

agent unix:/run/small.nbd
attach --name small --dead-conn-timeout 2m
mkfs.ext4 -q -F /dev/nbd0
mount -t ext4 /dev/nbd0 /mnt
(
	i=0
	until [ -e /tmp/stop ]; do
		echo "line $i" | dd of=/mnt/small.$((i % 50)) conv=fsync 2>/dev/null || touch /tmp/failed
		i=$((i + 1))
		echo $i >/tmp/count
	done
) &
small=$!
more() { # ten more fsyncs
	before=$(cat /tmp/count)
	until [ "$(cat /tmp/count)" -ge $((before + 10)) ]; do
		[ ! -e /tmp/failed ] || fail "a write failed"
		sleep 0.2
	done
}
sleep 1
for address in unix:/run/small.nbd unix:/run/other.nbd 127.0.0.1:10810; do
	more
	kill -TERM $agent
	wait $agent || fail "the agent ended with $?"
	agent $address # the watch asks where it serves now
done
more
touch /tmp/stop
wait $small
[ ! -e /tmp/failed ] || fail "a write failed"
sha1sum /mnt/small.* >/tmp/sum
umount /mnt
mirror-agent resize 64MiB --name small
until [ "$(cat /sys/block/nbd0/size)" = 131072 ]; do sleep 0.2; done
dd if=/dev/urandom of=/dev/nbd0 bs=4k seek=16383 count=1 conv=fsync,notrunc 2>/tmp/dd || fail "what is new cannot be written: $(cat /tmp/dd)"
step "PASS grown"
mirror-agent detach /dev/nbd0
wait $watch || fail "the watch ended with $?"
[ "$(grep -c 'links renewed' /tmp/attach.log)" -ge 3 ] || fail "links were not renewed: $(cat /tmp/attach.log)"
grep ' ERR ' /tmp/attach.log && fail "the watch complains"
dmesg | grep -iE 'i/o error|remounting' && fail "the kernel saw an error"
step "PASS local"

attach --control /run/mirror-agent/small.sock --dead-conn-timeout 3s
mount -t ext4 /dev/nbd0 /mnt
sha1sum -c /tmp/sum >/tmp/check || { cat /tmp/check; fail "what was written is not there"; }
kill -TERM $agent
wait $agent || fail "the agent ended with $?"
if dd if=/dev/zero of=/mnt/lost bs=4k count=1 conv=fsync 2>/tmp/dd; then fail "an fsync succeeded without a server"; fi
cat /tmp/dd
agent unix:/run/small.nbd
until grep -q 'a filesystem that saw it wants to be unmounted' /tmp/attach.log; do sleep 0.2; done
umount /mnt
fsck.ext4 -fy /dev/nbd0 || [ $? = 1 ] || fail "fsck"
mount -t ext4 -o ro /dev/nbd0 /mnt
sha1sum -c /tmp/sum >/tmp/check || { cat /tmp/check; fail "what was written is not there"; }
umount /mnt
mirror-agent detach /dev/nbd0
wait $watch || fail "the watch ended with $?"
kill -TERM $agent
wait $agent || fail "the agent ended with $?"
step "PASS expired"
exit 0
