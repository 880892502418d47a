# shellcheck shell=dash
# The disk under the agent's journal fails a writeback: fdatasync returns EIO once, and the pages stay
# cached, clean, and are not on the disk. The agent stops, shows what is sound, and after a restart reads the disk.
set -e
for m in nbd loop dm-flakey; do modprobe $m; done
step() { echo "[$(cut -d' ' -f1 /proc/uptime)] $*"; }
fail() {
	step "FAIL $*"
	dmesg | tail -n 20
	tail -n 20 /tmp/agent.log
	exit 3
}
state() { mirror-agent status --name small --json 2>/dev/null | grep '"state":' | head -n 1; }
agent() {
	mirror-agent source --name small --device /tmp/small.img --size 16MiB --journal /dev/mapper/j --nbd unix:/run/small.nbd >>/tmp/agent.log 2>&1 &
	agent=$!
	until mirror-agent status --name small --json 2>/dev/null | grep -q '"address": *"'; do
		kill -0 $agent 2>/dev/null || fail "the agent does not run"
		sleep 0.2
	done
	mirror-agent attach /dev/nbd0 --name small --timeout 5s --connections 1 >/tmp/attach.log 2>&1 &
	watch=$!
	until grep -q '^/dev/nbd0: ' /tmp/attach.log; do
		kill -0 $watch 2>/dev/null || fail "no attach: $(cat /tmp/attach.log)"
		sleep 0.2
	done
}
table() {
	dmsetup suspend --nolockfs j
	dmsetup load j --table "0 $sectors $1"
	dmsetup resume j
}
write() { yes "$1" | dd of=/dev/nbd0 bs=4096 count=1 seek="$2" oflag=direct iflag=fullblock conv=notrunc,fsync 2>/dev/null; }
first() { dd if=/dev/nbd0 bs=4096 count=1 skip="$1" iflag=direct 2>/dev/null | head -c 1; }

dd if=/dev/zero of=/tmp/journal.img bs=1M count=0 seek=32 2>/dev/null
losetup /dev/loop0 /tmp/journal.img
sectors=$((32 * 2048))
dmsetup create j --table "0 $sectors linear /dev/loop0 0"
# Somebody who has it open: the last one who closes a block device takes the cache along.
exec 9</dev/mapper/j
agent
write A 0 || fail "write and flush on a good disk"
# All applied: else the next anchor meets the bad disk, and not the flush of B.
number() { mirror-agent status --name small --json | sed -n "s/.*\"$1\": *\([0-9]*\).*/\1/p" | head -n 1; }
until [ "$(number applied)" = "$(number head)" ]; do sleep 0.2; done
step "good disk"
table "flakey /dev/loop0 0 0 3600 1 error_writes"
if write B 1; then fail "a flush was answered that is not on the disk"; fi
until state | grep -q failed; do sleep 0.2; done
mirror-agent status --name small | head -n 5
grep -q 'journal failed' /tmp/agent.log || fail "the agent does not say what failed"
[ "$(first 0)" = A ] || fail "what was flushed is not read while the volume is stopped"
if [ "$(first 1)" = B ]; then fail "what never became durable is shown"; fi
echo "PASS stopped"
dd if=/dev/mapper/j bs=64K count=1 2>/dev/null | tr -d '\0' | grep -q '^B$' || fail "the page cache does not have what the disk has not: this tests nothing"
if dd if=/dev/mapper/j bs=64K count=1 iflag=direct 2>/dev/null | tr -d '\0' | grep -q '^B$'; then fail "the disk has it"; fi
table "linear /dev/loop0 0"
mirror-agent detach /dev/nbd0
wait $watch || true
kill -9 $agent
wait $agent || true
agent
[ "$(first 0)" = A ] || fail "what was flushed is lost"
got=$(first 1)
[ "$got" != B ] || fail "recovery believed the page cache: what it shows is not on the disk"
write C 1 || fail "write and flush after the restart"
echo "PASS disk"
mirror-agent detach /dev/nbd0
wait $watch || true
kill -TERM $agent
wait $agent || fail "no clean end"
