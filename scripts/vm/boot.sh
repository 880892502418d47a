#!/bin/bash
# boot.sh NBD_URI GUEST_SCRIPT [NAME=VALUE…]   boots Debian's kernel in QEMU (software
#                                              emulation) and runs the script in it as root
# boot.sh --prepare                            only fetches and builds what that needs
#
# The script (busybox sh) has $HOST, $PORT and $EXPORT of the URI, and each NAME. The host is
# 10.0.2.2 in the guest; only its loopback is reached, so the URI is nbd://127.0.0.1:PORT/EXPORT.
# A pipe at its standard input is the guest's /dev/ttyS0: the host may answer what the script says.
# Exit status: that of the guest script; 124 time out; 77 what it needs is not to be had (the
# last line says what); 1 anything else. README.md has the knobs.
set -euo pipefail

cache=${MIRROR_AGENT_VM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/mirror-agent/vm}
bins=${BINS:-nbd-client mkfs.ext4 fsck.ext4 mkfs.xfs xfs_repair mkfs.btrfs btrfs}
mods=${MODS:-virtio_pci virtio_net virtio_blk nbd ext4 xfs btrfs loop dm-flakey dm-log-writes sch_netem}

unavailable() {
	echo "boot.sh: $*" >&2
	exit 77
}

need_programs() {
	local p
	for p in qemu-system-x86_64 busybox cpio depmod modprobe dpkg-deb flock $bins; do
		command -v "$p" >/dev/null || unavailable "$p is missing: run scripts/deps.sh"
	done
	[[ $(uname -m) == x86_64 ]] || unavailable "the guest is x86_64, this machine is $(uname -m)"
}

# The kernel: a package that is unpacked and never installed. One that is in the cache is used
# as it is, so that no run depends on the network but the first.
newest_cached() {
	find "$cache" -maxdepth 1 -name 'linux-image-*-cloud-amd64' -printf '%f\n' 2>/dev/null | sort -V | tail -n 1
}

named_by_archive() {
	apt-cache depends linux-image-cloud-amd64 2>/dev/null | awk '/Depends: linux-image/ {print $2; exit}'
}

fetch_kernel() {
	local work log=$cache/download.log
	command -v apt-get >/dev/null || unavailable "no apt-get to fetch Debian's kernel with; unpack a linux-image-*-cloud-amd64 package into $cache by hand"
	kernel=${KERNEL:-$(named_by_archive)}
	work=$(mktemp -d "$cache/fetch.XXXXXX")
	if [[ -z $kernel ]] || ! (cd "$work" && timeout 180 apt-get -qq download "$kernel") >"$log" 2>&1; then
		# Lists that were never fetched, or so old that the package is gone.
		((EUID != 0)) || timeout 180 apt-get -qq -o DPkg::Lock::Timeout=60 update >>"$log" 2>&1 || true
		kernel=${KERNEL:-$(named_by_archive)}
		if [[ -z $kernel ]] || ! (cd "$work" && timeout 180 apt-get -qq download "$kernel") >>"$log" 2>&1; then
			rm -rf "$work"
			unavailable "apt-get download ${kernel:-linux-image-cloud-amd64} failed: $(tail -n 1 "$log")"
		fi
	fi
	mkdir "$work/root"
	dpkg-deb -x "$work"/*.deb "$work/root"
	depmod -b "$work/root" "${kernel#linux-image-}"
	rm -rf "${cache:?}/$kernel"
	mv "$work/root" "$cache/$kernel"
	rm -rf "$work"
}

# copy_program PATH ROOT: with the libraries that it is linked with.
copy_program() {
	local lib
	mkdir -p "$2$(dirname "$1")"
	cp -L "$1" "$2$1"
	while read -r lib; do
		mkdir -p "$2$(dirname "$lib")"
		cp -nL "$lib" "$2$lib"
	done < <(ldd "$1" 2>/dev/null | grep -o '/[^ ]*' || true)
}

build_initrd() {
	local root b m version=${kernel#linux-image-}
	root=$(mktemp -d "$cache/root.XXXXXX")
	mkdir -p "$root"/{bin,sbin,proc,sys,dev,tmp,run,etc,mnt,usr/sbin,usr/bin,"lib/modules/$version"}
	cp "$(command -v busybox)" "$root/bin/busybox"
	for b in $bins; do copy_program "$(command -v "$b")" "$root"; done
	for m in $mods; do
		modprobe -q -d "$cache/$kernel" -S "$version" --show-depends "$m" | awk '$1 == "insmod" {print $2}'
	done | sort -u | while read -r m; do
		mkdir -p "$(dirname "$root${m#"$cache/$kernel"}")"
		cp "$m" "$root${m#"$cache/$kernel"}"
	done
	cp "$cache/$kernel/lib/modules/$version"/modules.{order,builtin,builtin.modinfo} "$root/lib/modules/$version/"
	depmod -b "$root" "$version"
	cp "$here/init.sh" "$root/init"
	chmod 755 "$root/init"
	(cd "$root" && find . | cpio -o -H newc --quiet) >"$initrd.new"
	mv "$initrd.new" "$initrd"
	rm -rf "$root"
	# Those of other kernels and lists of programs; a run that reads one keeps it open.
	find "$cache" -maxdepth 1 -name 'initrd-*.cpio' -printf '%T@ %p\n' | sort -rn | tail -n +4 | cut -d' ' -f2- | xargs -r rm -f
}

prepare() {
	need_programs
	mkdir -p "$cache"
	exec 9>"$cache/lock"
	flock -w 300 9 || unavailable "another boot.sh has held $cache/lock for five minutes"
	kernel=${KERNEL:-$(newest_cached)}
	[[ -n $kernel && -e $cache/$kernel/boot/vmlinuz-${kernel#linux-image-} ]] || fetch_kernel
	vmlinuz=$cache/$kernel/boot/vmlinuz-${kernel#linux-image-}
	initrd=$cache/initrd-$(echo "$bins $mods $kernel" | cat - "$here/boot.sh" "$here/init.sh" | sha1sum | cut -c1-12).cpio
	[[ -e $initrd ]] || build_initrd
	exec 9>&-
}

# pack_job makes what the kernel unpacks over the initramfs: the script, its variables, FILES.
pack_job() {
	local uri=$1 script=$2 root=$job/root address name port f pair
	shift 2
	mkdir "$root"
	cp "$script" "$root/job.sh"
	address=${uri#nbd://} name=''
	[[ $address == */* ]] && name=${address#*/} address=${address%%/*}
	port=10809
	[[ $address == *:* ]] && port=${address##*:}
	{
		printf 'export HOST=10.0.2.2 PORT=%q EXPORT=%q\n' "$port" "$name"
		for pair in "$@"; do printf 'export %q=%q\n' "${pair%%=*}" "${pair#*=}"; done
	} >"$root/job.env"
	for f in ${FILES:-}; do
		copy_program "$f" "$root"
		[[ $f == /usr/sbin/* || $f == /usr/bin/* ]] && continue
		mkdir -p "$root/usr/bin"
		mv "$root$f" "$root/usr/bin/"
	done
	(cd "$root" && find . | cpio -o -H newc --quiet) | cat "$initrd" - >"$job/initrd"
	rm -rf "$root"
}

boot() {
	local drives=() disk i=0 network=user,id=n0 extra=() input=/dev/null
	[[ ! -p /dev/stdin ]] || input=/dev/stdin
	for disk in ${DISKS:-}; do
		drives+=(-drive "file=$disk,if=none,id=d$i,format=raw" -device "virtio-blk-pci,drive=d$i")
		i=$((i + 1))
	done
	case ${NET:-user} in
	user,*) network=user,id=n0,${NET#user,} ;;
	tap:*) network=tap,id=n0,ifname=${NET#tap:},script=no,downscript=no,vhost=off ;;
	listen:* | connect:*) network=socket,id=n0,${NET%%:*}=127.0.0.1:${NET#*:} ;;
	esac
	read -ra extra <<<"${QEXTRA:-}"
	# --foreground: a signal to this script's process group reaches QEMU, too.
	timeout --foreground "${TIMEOUT:-170}" qemu-system-x86_64 -M q35 -accel tcg,thread=multi -cpu max \
		-smp "${SMP:-2}" -m "${MEM:-768}" -nodefaults -no-user-config -display none -no-reboot -serial stdio \
		-kernel "$vmlinuz" -initrd "$job/initrd" \
		-append "console=ttyS0 quiet loglevel=4 panic=-1 mitigations=off nokaslr tsc=reliable random.trust_cpu=on" \
		-netdev "$network" -device "virtio-net-pci,netdev=n0,mac=${MAC:-52:54:00:12:34:56},romfile=" \
		"${drives[@]}" "${extra[@]}" <$input 2>&1 | sed -u 's,\r,,g' | tee "$job/console"
}

here=$(cd "$(dirname "$0")" && pwd)
if [[ ${1:-} == --prepare ]]; then
	prepare
	exit 0
fi
if (($# < 2)); then
	echo "usage: boot.sh NBD_URI GUEST_SCRIPT [NAME=VALUE…] | boot.sh --prepare" >&2
	exit 2
fi
prepare
job=$(mktemp -d "$cache/job.XXXXXX")
trap 'rm -rf "$job"' EXIT
pack_job "$@"
status=0
boot || status=${PIPESTATUS[0]}
guest=$(sed -n 's/^GUEST-STATUS=\([0-9]*\).*/\1/p' "$job/console" | tail -n 1)
echo "boot.sh: $kernel, $SECONDS s in all, guest script ${guest:-did not end}, qemu $status"
if [[ -n $guest ]]; then
	exit "$guest"
fi
((status == 124)) && exit 124
exit 1
