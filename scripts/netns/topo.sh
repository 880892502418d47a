#!/bin/bash
# topo.sh up|down|status: three hosts on one machine, as network namespaces.
#
#	             t1 10.201.1.1 ─────── 10.201.1.2 s1
#	$PFX-src     t2 10.201.2.1 ─────── 10.201.2.2 s2     $PFX-tgt
#	             t3 10.201.3.1 ─────── 10.201.3.2 s3
#	             b1 10.202.1.1 ─────── 10.202.1.3 s1     $PFX-bak
#	             b2 10.202.2.1 ─────── 10.202.2.3 s2
#
# PFX (default ma) tells concurrent users apart; the addresses may be the same,
# since a namespace sees only its own. Needs root. `up` undoes what it did when
# it fails half-way; `down` may be called at any time.
set -euo pipefail

prefix=${PFX:-ma}
src=$prefix-src tgt=$prefix-tgt bak=$prefix-bak

# link NSA IFA IPA NSB IFB IPB: a cable with an address at each end.
link() {
	ip link add "$2" netns "$1" type veth peer name "$5" netns "$4"
	ip -n "$1" addr add "$3/24" dev "$2"
	ip -n "$4" addr add "$6/24" dev "$5"
	ip -n "$1" link set "$2" up
	ip -n "$4" link set "$5" up
}

exists() { ip netns list | grep -qE "^$1( |\$)"; }

up() {
	local n i
	for n in "$src" "$tgt" "$bak"; do
		if exists "$n"; then
			echo "topo.sh: namespace $n exists: run 'PFX=$prefix topo.sh down' or choose another PFX" >&2
			exit 1
		fi
	done
	trap 'down; echo "topo.sh: not built, undone" >&2' ERR
	trap 'down; exit 130' INT TERM
	for n in "$src" "$tgt" "$bak"; do
		ip netns add "$n"
		ip -n "$n" link set lo up
	done
	for i in 1 2 3; do link "$src" "t$i" "10.201.$i.1" "$tgt" "s$i" "10.201.$i.2"; done
	for i in 1 2; do link "$src" "b$i" "10.202.$i.1" "$bak" "s$i" "10.202.$i.3"; done
	# One path must not answer for another: no weak-host ARP, strict reverse path.
	for n in "$src" "$tgt" "$bak"; do
		ip netns exec "$n" sh -c '
			echo 1 >/proc/sys/net/ipv4/conf/all/arp_ignore
			echo 2 >/proc/sys/net/ipv4/conf/all/arp_announce
			echo 1 >/proc/sys/net/ipv4/conf/all/rp_filter'
	done
	# The kernel's word that a cable has carrier may come up to a second later.
	for _ in {1..50}; do
		[[ $(status || true) == *DOWN* ]] || break
		sleep 0.1
	done
	trap - ERR INT TERM
}

down() {
	local n pids
	for n in "$src" "$tgt" "$bak"; do
		exists "$n" || continue
		pids=$(ip netns pids "$n")
		if [[ -n $pids ]]; then
			# shellcheck disable=SC2086 # one word per process
			kill $pids 2>/dev/null || true
			for _ in {1..50}; do
				[[ -z $(ip netns pids "$n") ]] && break
				sleep 0.1
			done
			pids=$(ip netns pids "$n")
			# shellcheck disable=SC2086
			[[ -z $pids ]] || kill -KILL $pids 2>/dev/null || true
		fi
		ip netns del "$n"
	done
}

status() {
	local n all=0
	for n in "$src" "$tgt" "$bak"; do
		if exists "$n"; then
			echo "$n: $(ip -n "$n" -brief -4 addr show | awk '$1 != "lo" {printf "%s %s %s  ", $1, $3, $2}')"
		else
			echo "$n: not there"
			all=1
		fi
	done
	return "$all"
}

if ((EUID != 0)) && [[ ${1:-} == up || ${1:-} == down ]]; then
	echo "topo.sh: network namespaces need root: run it with sudo" >&2
	exit 1
fi
case ${1:-} in
up) up ;;
down) down ;;
status) status ;;
*)
	echo "usage: [PFX=name] topo.sh up|down|status" >&2
	exit 2
	;;
esac
