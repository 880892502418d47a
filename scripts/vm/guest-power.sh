# shellcheck shell=dash
# Agents whose devices and logs are disks of the guest, to kill QEMU under them: what only the guest's page cache had is gone then.
# AGENTS is how many there are, of the program AGENT, ARGS0, ARGS1, … are their command lines, PORT0, PORT1, … lead to their control sockets, by PROGRAM, which is
# told so by the variable RELAY. Whoever connects to port 9000 has a shell; /tmp/end ends all.
set -e
fail() {
	echo "FAIL $*"
	tail -n 20 /tmp/*.log
	exit 3
}

exec 3</dev/vda # the first disk stays open: what is written there is synced by who says so, and not when it is closed
nc -ll -p 9000 -e /bin/sh &
pids='' pairs='' i=0
while [ $i -lt "$AGENTS" ]; do
	eval "args=\$ARGS$i port=\$PORT$i"
	# shellcheck disable=SC2086,SC2154 # one word per argument; set by eval
	GOMAXPROCS=1 "$AGENT" $args --control /run/$i.ctl >/tmp/$i.log 2>&1 &
	pids="$pids $!"
	# shellcheck disable=SC2154
	pairs="$pairs,$port:/run/$i.ctl"
	i=$((i + 1))
done
env "$RELAY=${pairs#,}" "$PROGRAM" &
until [ -e /tmp/end ]; do
	for p in $pids; do
		kill -0 "$p" 2>/dev/null || fail "an agent has ended"
	done
	sleep 0.5
done
for p in $pids; do
	kill -TERM "$p"
done
for p in $pids; do
	wait "$p" || fail "no clean end"
done
