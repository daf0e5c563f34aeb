#!/bin/bash
# host_tools.sh - the Debian packages that the whole test suite drives: foreign initiators, a foreign
# target, and what boots the Linux guest.
#
#   host_tools.sh            install what is missing (root), else say what is missing and go on:
#                            the tests that need it are then skipped, each with its reason
#   host_tools.sh --missing  only print the missing packages, one a line
set -euo pipefail

PACKAGES="
	tgt libiscsi-bin libiscsi-dev qemu-utils qemu-block-extra sg3-utils gcc tcpdump
	qemu-system-x86 cpio kmod e2fsprogs iproute2 util-linux etcd-server openssl"

missing() {
	for package in $PACKAGES; do
		dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || echo "$package"
	done
}

if ! command -v dpkg-query >/dev/null; then
	echo "host_tools: not a Debian or Ubuntu system; the tests want these tools:" $PACKAGES >&2
	exit 0
fi
wanted=$(missing | xargs)
if [ "${1:-}" = --missing ]; then
	for package in $wanted; do echo "$package"; done
	exit 0
fi
[ -n "$wanted" ] || exit 0

if [ "$(id -u)" != 0 ]; then
	echo "host_tools: not root, so not installed: $wanted" >&2
	echo "host_tools: the tests that need them are skipped; for all tests:  sudo apt-get install $wanted" >&2
	exit 0
fi
echo "host_tools: installing $wanted" >&2
export DEBIAN_FRONTEND=noninteractive
# The tests start their own tgtd and etcd, on their own ports and data. As services of the packages these would only
# hold ports, and etcd keep data, so their first start is prevented: by a mask where systemd runs, else by a runlevel.
export RUNLEVEL=1
services=""
for service in tgt:tgt etcd:etcd-server; do
	case " $wanted " in *" ${service#*:} "*) services="$services ${service%:*}" ;; esac
done
systemd() { [ -z "$services" ] || [ ! -d /run/systemd/system ] || systemctl "$@" $services >&2 || true; }
systemd mask
trap 'systemd unmask; systemd disable' EXIT
install() { apt-get install -q -y --no-install-recommends $wanted >&2; }
# Package lists may be absent or old on a fresh machine, so look once more after an update.
install || { apt-get update -q >&2 && install; } || {
	echo "host_tools: could not install $wanted; the tests that need them are skipped" >&2
	exit 0
}
