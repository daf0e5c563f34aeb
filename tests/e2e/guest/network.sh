#!/bin/bash
# network.sh - a private network for a group of members and the guest, with an address for each.
#
#   network.sh with COMMAND...   run COMMAND in a throw-away network of this shape; needs no root
#   network.sh up | down | show  the same as a lasting network namespace ($NAMESPACE, root)
#   network.sh exec COMMAND...   run COMMAND in that namespace
#
# Bridge br0 holds 192.168.77.10 (group portal) and .11 .12 .13 (members); tap0 on it is for a guest (.100).
# Nothing inside can reach, or be reached from, any other network.
set -euo pipefail
namespace=${NAMESPACE:-san-target}
prefix=192.168.77

set_up() { # runs inside the namespace
	ip link set lo up
	ip link add br0 type bridge stp_state 0 forward_delay 0
	for host in 10 11 12 13; do ip addr add "$prefix.$host/24" dev br0; done
	ip tuntap add tap0 mode tap
	ip link set tap0 master br0
	ip link set tap0 up
	ip link set br0 up
}

case ${1:-} in
up)
	ip netns add "$namespace"
	ip netns exec "$namespace" "$0" inside
	;;
down) ip netns del "$namespace" ;;
show) ip netns exec "$namespace" ip -brief address ;;
exec)
	shift
	exec ip netns exec "$namespace" "$@"
	;;
with)
	shift
	exec unshare --user --map-root-user --net --kill-child -- "$0" inside "$@"
	;;
inside)
	shift
	set_up
	[ $# = 0 ] || exec "$@"
	;;
*)
	sed -n '2,9p' "$0" >&2
	exit 2
	;;
esac
