# shellcheck shell=dash
# Agents whose devices and logs are disks of the guest, to kill QEMU under them: what only the guest's page cache had is gone then.
# AGENTS is how many there are, ARGS0, ARGS1, … are their command lines. Whoever connects to port 9000 has a shell; /tmp/end ends all.
set -e
fail() {
	echo "FAIL $*"
	tail -n 20 /tmp/*.log
	exit 3
}

pids='' i=0
while [ $i -lt "$AGENTS" ]; do
	eval "args=\$ARGS$i"
	# shellcheck disable=SC2086,SC2154 # one word per argument; set by eval
	mirror-agent $args --control /run/$i.ctl >/tmp/$i.log 2>&1 &
	pids="$pids $!"
	i=$((i + 1))
done
nc -ll -p 9000 -e /bin/sh &
shell=$!
echo "READY"
until [ -e /tmp/end ]; do
	for p in $pids; do
		kill -0 "$p" 2>/dev/null || fail "an agent has ended"
	done
	sleep 0.5
done
for p in $pids; do
	kill -TERM "$p"
	wait "$p" || fail "no clean end"
done
kill $shell
