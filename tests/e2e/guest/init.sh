#!/bin/bash
# init.sh - PID 1 of the guest: bring the machine up, then run the commands that arrive on the control port.
#
# Settings come from the kernel command line (the kernel hands NAME=VALUE to init as environment):
#   GUEST_LOOPBACK=1        127.0.0.1:PORT leads to the host's 127.0.0.1:PORT, for ports from 1024
#   GUEST_ADDRESS=A.B.C.D/N the address on a tap network, without gateway (default: QEMU's user network)
#   GUEST_INITIATOR=IQN     the initiator name
#
# Control port (virtio-serial "control"): a line "TOKEN SECONDS BASE64" runs the decoded shell command for at most
# SECONDS; the answer is its output, then a line "\x1eTOKEN STATUS". "poweroff" ends the machine.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb LANG=C.UTF-8

mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
mkdir -p /run/lock/iscsi /run/udev /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
ln -sf /proc/self/fd /dev/fd
ln -sf fd/0 /dev/stdin
ln -sf fd/1 /dev/stdout
ln -sf fd/2 /dev/stderr
mount -o ro /dev/vdb /lib/modules
hostname guest

network_up() {
	local interface
	ip link set lo up
	for interface in /sys/class/net/*; do
		interface=${interface##*/}
		[ "$interface" = lo ] && continue
		ip link set "$interface" up
		ip addr add "${GUEST_ADDRESS:-10.0.2.15/24}" dev "$interface"
		[ -n "${GUEST_ADDRESS:-}" ] || ip route add default via 10.0.2.2
	done
	[ "${GUEST_LOOPBACK:-0}" = 1 ] || return 0
	# The user network shows the host's loopback as 10.0.2.2. With both ends translated, a portal that a target
	# reports or redirects to as 127.0.0.1:PORT works unchanged.
	echo 1 >/proc/sys/net/ipv4/conf/all/route_localnet
	nft -f - <<-RULES
		table ip host_loopback {
			chain out { type nat hook output priority -100; ip daddr 127.0.0.0/8 tcp dport >= 1024 dnat to 10.0.2.2; }
			chain post { type nat hook postrouting priority 100; ip saddr 127.0.0.0/8 ip daddr 10.0.2.2 snat to 10.0.2.15; }
		}
	RULES
}

port_of() { # the device of a virtio-serial port, by its name
	local port
	for port in /sys/class/virtio-ports/*; do
		[ "$(cat "$port/name")" = "$1" ] && echo "/dev/${port##*/}"
	done
}

network_up
/lib/systemd/systemd-udevd --daemon # real udev, for /dev/disk/by-* and multipath
udevadm trigger --action=add --subsystem-match=block --subsystem-match=net
udevadm settle -t 10
[ -z "${GUEST_INITIATOR:-}" ] || echo "InitiatorName=$GUEST_INITIATOR" >/etc/iscsi/initiatorname.iscsi
modprobe -a iscsi_tcp sd_mod sg
iscsid

exec 7<>"$(port_of control)"
printf '\036ready 0\n' >&7
while :; do
	read -r token seconds encoded <&7 || { sleep 0.05; continue; } # end of file: the host side is not connected
	command=$(base64 -d <<<"$encoded")
	[ "$command" = poweroff ] && break
	# Output goes to a file that is sent when the command has ended: a daemon that it leaves behind keeps its
	# output open, and must neither hold up the answer nor write into the next one.
	output=/run/output.$token
	(exec 7<&-; cd /root; exec setsid timeout -k 5 "$seconds" bash -c "$command") </dev/null >"$output" 2>&1
	status=$?
	cat "$output" >&7
	printf '\036%s %s\n' "$token" "$status" >&7
	rm -f "$output"
done
sync
busybox poweroff -n -f
