"""LIO, the target of the Linux kernel, in the guest: configured over configfs, reached from the host.

By hand, in a guest that was made with `forward={HOST_PORT: lio.PORT}`: `lio.serve(guest, "disk", 1 << 20)`, then
`initiator-sim run 127.0.0.1:HOST_PORT iqn.2026-01.org.example.lio:disk --workload randrw --verify`.
"""

from __future__ import annotations

from tests.e2e.guest.machine import Guest

PORT = 3260
NAME = "iqn.2026-01.org.example.lio:"

# One file on tmpfs behind one target with open access. $1 name, $2 size in bytes, $3 portal.
SERVE = """#!/bin/bash
set -euo pipefail
modprobe -a target_core_mod target_core_file iscsi_target_mod
mountpoint -q /sys/kernel/config || mount -t configfs configfs /sys/kernel/config
cd /sys/kernel/config/target
store=core/fileio_0/$1
mkdir -p "$store"
truncate -s "$2" "/dev/shm/$1"
echo "fd_dev_name=/dev/shm/$1,fd_dev_size=$2,fd_buffered_io=1" >"$store/control"
echo 1 >"$store/enable"
echo 1 >"$store/attrib/emulate_tpu"
group=iscsi/%s$1/tpgt_1
mkdir -p "$group/np/$3" "$group/lun/lun_0"
ln -s "$PWD/$store" "$group/lun/lun_0/disk"
echo 0 >"$group/attrib/authentication"
echo 1 >"$group/attrib/generate_node_acls"
echo 1 >"$group/attrib/cache_dynamic_acls"
echo 0 >"$group/attrib/demo_mode_write_protect"
echo 1 >"$group/enable"
""" % (NAME)  # noqa: UP031 - braces belong to the shell


def serve(guest: Guest, name: str, size_bytes: int) -> str:
    """Make a target with one disk; its name."""
    guest.put("/run/lio-serve", SERVE)
    guest.check(f"/run/lio-serve {name} {size_bytes} 0.0.0.0:{PORT}")
    return f"{NAME}{name}"
