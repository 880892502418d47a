#!/bin/bash
# deps.sh [--list]: installs the Debian packages that build, tests and benchmarks use,
# when they are missing. As root at once, through sudo where it asks for no
# password (or a terminal is there to ask at), else it prints the command.
# Quick and silent when all is there; --list only names the packages.
set -euo pipefail

packages=(
	make git ca-certificates
	gcc libc6-dev          # go test -race
	nbdkit                 # a peer in tests and the benchmark
	libnbd-bin             # nbdinfo nbdcopy nbdfuse
	python3-libnbd         # nbdsh
	qemu-utils             # qemu-io qemu-img qemu-nbd
	qemu-system-common     # qemu-storage-daemon
	nbd-client
	qemu-system-x86        # the virtual machine of scripts/vm, with:
	busybox-static cpio kmod
	etcd-server            # the arbiter
	fio
	e2fsprogs xfsprogs btrfs-progs fuse3 sqlite3
	postgresql             # a database on the mirror; tests start its programs themselves
	systemd dpkg           # units under a real systemd; packages
	util-linux mount       # losetup, mount
	iproute2 nftables procps
	shellcheck
	chromium fonts-dejavu-core # the page, in a browser
	prometheus             # promtool: rules and metrics of scripts/monitoring
)

if [[ ${1:-} == --list ]]; then
	printf '%s\n' "${packages[@]}"
	exit 0
fi

if ! command -v dpkg-query >/dev/null; then
	echo "deps.sh: this is not a Debian system; install by its own means: ${packages[*]}" >&2
	exit 1
fi

missing() {
	local have p
	have=$(dpkg-query -W -f '${Package} ${db:Status-Status}\n' "${packages[@]}" 2>/dev/null || true)
	for p in "${packages[@]}"; do
		grep -qx "$p installed" <<<"$have" || echo "$p"
	done
}

mapfile -t want < <(missing)
if ((${#want[@]} == 0)); then
	exit 0
fi

if ((EUID == 0)); then
	as_root=()
elif command -v sudo >/dev/null && { sudo -n true 2>/dev/null || [[ -t 0 ]]; }; then
	as_root=(sudo)
else
	echo "deps.sh: missing Debian packages; as root: apt-get update && apt-get install -y --no-install-recommends ${want[*]}" >&2
	exit 1
fi

echo "deps.sh: installing ${want[*]}" >&2
# A machine that has just booted may be updating itself: wait for dpkg's lock.
apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300)
"${apt[@]}" update >&2
# PostgreSQL comes with a cluster that is started at once: not when it is installed by this.
if [[ " ${want[*]} " == *" postgresql "* ]]; then
	drop_in=/etc/postgresql-common/createcluster.d/deps.conf
	"${as_root[@]}" mkdir -p "${drop_in%/*}"
	echo "create_main_cluster = false" | "${as_root[@]}" tee "$drop_in" >/dev/null
	trap '"${as_root[@]}" rm -f "$drop_in"' EXIT
fi
"${apt[@]}" install -y --no-install-recommends "${want[@]}" </dev/null >&2

mapfile -t want < <(missing)
if ((${#want[@]} != 0)); then
	echo "deps.sh: apt-get ended well and yet these are missing: ${want[*]}" >&2
	exit 1
fi
