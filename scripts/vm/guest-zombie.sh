# shellcheck shell=dash
# The agent stands still for longer than the kernel waits for an answer: requests go out again on other connections, and the first copies lie in the
# sockets until it goes on. PROGRAM, told so by the variable OVERWRITE, writes the same blocks over and over, and compares what they hold in the end.
set -e
modprobe nbd max_part=0
order() {
	echo "HOST: $1"
	read -r _ </dev/ttyS0
}
fail() {
	echo "FAIL $*"
	dmesg | tail -n 20
	exit 3
}

mirror-agent attach /dev/nbd0 --nbd "$HOST:$PORT" --export "$EXPORT" --connections 4 --dead-conn-timeout 5m --timeout 2s &
watch=$!
until [ -e /sys/block/nbd0/pid ]; do
	kill -0 $watch || exit 3
	sleep 0.2
done
env "$OVERWRITE=/dev/nbd0" "$PROGRAM" &
writer=$!
# For as long as one connection is left, which answers beside the first copies; then until all are given up.
# shellcheck disable=SC2153 # of the environment, as boot.sh wrote it
for still in $STILL; do
	sleep 3
	order freeze
	sleep "$still"
	order thaw
	sleep 5
done
touch /tmp/stop
wait $writer || fail "a block does not hold what was answered last"
echo "given up: $(dmesg | grep -ic 'timed out')"
dmesg | grep -i 'i/o error' && fail "the kernel saw an error"
mirror-agent detach /dev/nbd0
wait $watch || fail "the watch ended with $?"
echo "PASS zombie"
exit 0
