#!/bin/bash
# build.sh [-f] - make the images of a small Linux guest with the kernel's own iSCSI initiator, from Debian
# packages alone. Prints the directory of the images. -f builds even if nothing changed.
#
#   GUEST_KERNEL=cloud|amd64   cloud (default) is small; amd64 adds what cloud lacks, such as scsi_dh_alua
#   GUEST_EXTRA="pkg pkg"      more Debian packages in the guest
#
# Nothing is installed on this machine and nothing here needs root: packages are fetched by apt-get against an
# empty dpkg status, unpacked with tar and put into ext4 images with mke2fs -d, so there is no loop mount.
# The images live outside the source tree, in ${XDG_CACHE_HOME:-~/.cache}/san-target/guest:
#   vmlinuz-KERNEL  initrd-KERNEL  modules-KERNEL.img  root.img (shared by both kernels)
# Exit 3: the package sources of this machine offer no Debian kernel.
set -euo pipefail

here=$(dirname "$(readlink -f "$0")")
kernel=${GUEST_KERNEL:-cloud}
case $kernel in
cloud) kernel_meta_package=linux-image-cloud-amd64 ;;
amd64) kernel_meta_package=linux-image-amd64 ;;
*) echo "build.sh: GUEST_KERNEL is cloud or amd64, not $kernel" >&2; exit 2 ;;
esac
packages="
	busybox-static bash coreutils util-linux mount kmod udev iproute2 nftables procps hostname
	grep sed gawk tar findutils diffutils python3-minimal e2fsprogs
	open-iscsi multipath-tools dmsetup sg3-utils lsscsi ${GUEST_EXTRA:-}"

cache=${XDG_CACHE_HOME:-$HOME/.cache}/san-target/guest
mkdir -p "$cache/debs/partial"
exec 9>"$cache/lock"
flock 9 # two test runs may start at once

# What the images depend on: these scripts, the choice of packages, and the age of apt's lists. Compared before
# anything slow happens, so that an up-to-date cache answers at once.
recipe=$(cat "$here"/*.sh | sha256sum; echo "$kernel $packages"; stat -c '%n %Y' /var/lib/apt/lists/*Release 2>/dev/null || true)
if [ "${1:-}" != -f ] && [ -f "$cache/root.img" ] && [ "$(cat "$cache/recipe-$kernel" 2>/dev/null)" = "$recipe" ]; then
	echo "$cache"
	exit 0
fi

apt() {
	apt-get -q -o Dir::State::status=/dev/null -o Debug::NoLocking=1 -o APT::Install-Recommends=false \
		-o APT::Sandbox::User= -o Acquire::Languages=none -o Dir::Cache::archives="$cache/debs" \
		-o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= "$@"
}

# fetch PACKAGE... : download the packages and all that they depend on; print the .deb files.
fetch() {
	apt -y --download-only install "$@" >"$cache/apt.log" 2>&1 || { tail "$cache/apt.log" >&2; return 1; }
	apt -s install "$@" 2>/dev/null | sed -nE 's/^Inst ([^ ]+) \(([^ ]+) .*/\1 \2/p' | while read -r name version; do
		# apt writes the colon of an epoch as %3a, and the architecture last
		compgen -G "$cache/debs/${name%%:*}_${version//:/%3a}_*.deb" || { echo "build.sh: no file for $name $version" >&2; return 1; }
	done
}

# image DIRECTORY FILE SPARE_MIB [mke2fs options]: an ext4 image of a directory, with room to write.
image() {
	local directory=$1 file=$2 spare=$3 size
	shift 3
	size=$(du -sm "$directory" | cut -f1)
	rm -f "$file"
	mke2fs -q -t ext4 -O ^has_journal -E root_owner=0:0,lazy_itable_init=1 -m 0 "$@" -d "$directory" "$file" "$((size * 13 / 10 + spare))M" >/dev/null
}

build_kernel() {
	local version package file work=$cache/work-kernel modules initramfs module name
	version=$(apt-cache depends "$kernel_meta_package" 2>/dev/null | sed -nE 's/.*Depends: linux-image-(.*)$/\1/p' | grep -v unsigned | head -n 1)
	[ -n "$version" ] || { echo "build.sh: no package $kernel_meta_package here: the guest needs Debian's package sources" >&2; exit 3; }
	package=linux-image-$version
	if ! compgen -G "$cache/debs/${package}_*.deb" >/dev/null; then
		(cd "$cache/debs" && apt-get -q -o APT::Sandbox::User= download "$package" >"$cache/apt.log" 2>&1) || { tail "$cache/apt.log" >&2; return 1; }
	fi
	file=$(ls -t "$cache/debs/${package}"_*.deb | head -n 1)
	rm -rf "$work"
	mkdir -p "$work"
	dpkg-deb --fsys-tarfile "$file" | tar -x -C "$work" ./boot ./lib
	cp "$work/boot/vmlinuz-$version" "$cache/vmlinuz-$kernel"

	# Modules for devices that the guest cannot have would only make the image large.
	modules=$work/lib/modules/$version
	(cd "$modules/kernel" && rm -rf sound arch/x86/kvm net/{bluetooth,mac80211,wireless,sctp,tipc,nfc,batman-adv,rds,ceph,sunrpc,can,smc} \
		drivers/{gpu,media,usb,infiniband,staging,hwmon,iio,input,hid,mmc,ata,edac,platform,firewire,thunderbolt,mfd} \
		drivers/net/{ethernet,wireless,can,usb,wan} fs/{btrfs,ocfs2,gfs2,cifs,smb,nfs,nfsd,ceph,f2fs,jfs,reiserfs,ubifs,udf,ntfs3,ksmbd})
	PATH=$PATH:/sbin depmod -b "$work" "$version" 2>"$cache/depmod.log"
	image "$work/lib/modules" "$cache/modules-$kernel.img" 12 -N 8000

	# The initramfs holds busybox and the modules without which no disk is seen, in the order of loading.
	initramfs=$work/initramfs
	mkdir -p "$initramfs"/{bin,proc,sys,dev,root,modules}
	file=$(fetch busybox-static | grep /busybox-static_)
	dpkg-deb --fsys-tarfile "$file" | tar -xO --wildcards '*bin/busybox' >"$initramfs/bin/busybox"
	chmod 755 "$initramfs/bin/busybox"
	install -m 755 "$here/initramfs.sh" "$initramfs/init"
	: >"$initramfs/modules/order"
	for module in virtio_pci virtio_blk virtio_console virtio_net crc32c_generic ext4 af_packet; do
		PATH=$PATH:/sbin modprobe -d "$work" -S "$version" -D "$module" | sed -nE 's/^insmod ([^ ]+).*/\1/p' | while read -r file; do
			name=$(basename "$file")
			grep -qx "$name" "$initramfs/modules/order" && continue
			cp "$file" "$initramfs/modules/$name"
			echo "$name" >>"$initramfs/modules/order"
		done
	done
	(cd "$initramfs" && find . | LC_ALL=C sort | cpio -o -H newc --owner=0:0 --quiet) >"$cache/initrd-$kernel"
	rm -rf "$work"
}

build_root() {
	local files file directory work=$cache/work-root
	# shellcheck disable=SC2086 # a list of words
	files=$(fetch $packages)
	rm -rf "$work"
	mkdir -p "$work"/usr/{bin,sbin,lib,lib64}
	for directory in bin sbin lib lib64; do ln -s "usr/$directory" "$work/$directory"; done
	for file in $files; do
		dpkg-deb --fsys-tarfile "$file" | tar -x -C "$work" --keep-directory-symlink --no-same-owner \
			--exclude='./usr/share/doc/*' --exclude='./usr/share/man/*' --exclude='./usr/share/locale/*' \
			--exclude='./usr/share/i18n/*' --exclude='./usr/lib/udev/hwdb.d/*' --exclude='./usr/lib/*/gconv/*'
	done
	mkdir -p "$work"/{proc,sys,dev,run,tmp,mnt,root,lib/modules,etc/iscsi,var/lib/iscsi}
	install -m 755 "$here/init.sh" "$work/sbin/guest-init"
	ln -sf bash "$work/bin/sh"   # so that every script may use pipefail
	ln -sf gawk "$work/bin/awk" # the links that maintainer scripts would have made
	[ -e "$work/usr/bin/python3" ] || ln -s "$(basename "$work"/usr/bin/python3.[0-9]*)" "$work/usr/bin/python3"
	printf 'root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534::/:/bin/false\n' >"$work/etc/passwd"
	# groups that udev's rules name
	printf '%s\n' root:x:0: tty:x:5: disk:x:6: lp:x:7: kmem:x:15: dialout:x:20: floppy:x:25: cdrom:x:24: tape:x:26: audio:x:29: \
		video:x:44: sgx:x:101: kvm:x:102: render:x:103: input:x:104: nogroup:x:65534: >"$work/etc/group"
	printf 'passwd: files\ngroup: files\nhosts: files\n' >"$work/etc/nsswitch.conf"
	echo '127.0.0.1 localhost guest' >"$work/etc/hosts"
	echo 'InitiatorName=iqn.1993-08.org.debian:01:guest' >"$work/etc/iscsi/initiatorname.iscsi"
	sed -i 's/^iscsid.startup/#&/' "$work/etc/iscsi/iscsid.conf" # it wants systemd; init.sh starts iscsid
	install -m 644 "$here/multipath.conf" "$work/etc/multipath.conf"
	PATH=$PATH:/sbin ldconfig -r "$work"
	image "$work" "$cache/root.img" 160 -N 40000 -L guestroot
	rm -rf "$work"
}

build_kernel
build_root
echo "$recipe" >"$cache/recipe-$kernel"
echo "$cache"
