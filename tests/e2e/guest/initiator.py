"""open-iscsi in the guest, as an administrator uses it: discover, log in, find the disk, rescan, log out."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from tests.e2e.guest.machine import Guest
from tests.support.target import Chap, Volume

# Prints the disk of the session of target $1 under initiator name $2, when it has come up.
DISK_OF = """#!/bin/bash
for _ in $(seq 100); do
    for session in /sys/class/iscsi_session/session*; do
        [ "$(cat $session/targetname)" = "$1" ] && [ "$(cat $session/initiatorname)" = "$2" ] || continue
        for disk in $session/device/target*/*/block/*; do
            [ -b "/dev/${disk##*/}" ] && [ "$(cat $disk/size)" != 0 ] && echo "/dev/${disk##*/}" && exit
        done
    done
    sleep 0.1
done
echo "no disk of $1 for $2" >&2
lsscsi >&2
exit 1
"""
DEFAULT_NAME = "iqn.1993-08.org.debian:01:guest"

# What the recovery tests want: a dead connection is noticed in seconds, and I/O waits a minute for a new one.
PATIENT: Mapping[str, str] = {
    "node.conn[0].timeo.noop_out_interval": "1",
    "node.conn[0].timeo.noop_out_timeout": "2",
    "node.session.timeo.replacement_timeout": "60",
}
DIGESTS: Mapping[str, str] = {"node.conn[0].iscsi.HeaderDigest": "CRC32C", "node.conn[0].iscsi.DataDigest": "CRC32C"}
# Exit statuses of iscsiadm.
REFUSED_BY_TARGET = 24  # an authentication failure that the target reports
REFUSED_BY_INITIATOR = 19  # the target did not prove to know its own secret


def chap_settings(chap: Chap, mutual: Chap | None = None, algorithm: str = "MD5") -> dict[str, str]:
    """Settings of a node record. `mutual`: what the target must prove to know."""
    settings = {
        "node.session.auth.authmethod": "CHAP",
        "node.session.auth.username": chap.user,
        "node.session.auth.password": chap.secret,
        "node.session.auth.chap_algs": algorithm,
    }
    if mutual is not None:
        settings["node.session.auth.username_in"] = mutual.user
        settings["node.session.auth.password_in"] = mutual.secret
    return settings


@dataclass(frozen=True)
class Initiator:
    """open-iscsi under one initiator name. Another name than the guest's own needs an `interface` of its own."""

    guest: Guest
    name: str = DEFAULT_NAME
    interface: str = "default"

    @classmethod
    def create(cls, guest: Guest, interface: str, name: str) -> Initiator:
        """A second initiator name in the same guest."""
        guest.check(
            f"iscsiadm -m iface -I {interface} -o new && "
            f"iscsiadm -m iface -I {interface} -o update -n iface.initiatorname -v {name}"
        )
        return cls(guest, name, interface)

    def _node(self, volume: Volume) -> str:
        return f"iscsiadm -m node -T {volume.iqn} -p {volume.portal} -I {self.interface}"

    def discover(self, portal: str) -> list[tuple[str, str]]:
        """SendTargets: (portal, target name) of each record; makes node records, as iscsiadm does."""
        output = self.guest.check(f"iscsiadm -m discovery -t sendtargets -p {portal} -I {self.interface}")
        rows = [line.split() for line in output.splitlines()]
        return [(address.partition(",")[0], iqn) for address, iqn in rows]

    def try_login(self, volume: Volume, settings: Mapping[str, str] | None = None) -> tuple[int, str]:
        """(exit status of iscsiadm, its output)."""
        node = self._node(volume)
        updates = [
            f"{node} -o update -n {shlex.quote(name)} -v {shlex.quote(value)}"
            for name, value in (settings or {}).items()
        ]
        known = f"({node} >/dev/null 2>&1 || {node} -o new >/dev/null)"
        result = self.guest.run(" && ".join([known, *updates, f"{node} --login"]), timeout=90)
        return result.status, result.output

    def login(self, volume: Volume, settings: Mapping[str, str] | None = None) -> str:
        """Log in and return the disk, such as /dev/sda."""
        status, output = self.try_login(volume, settings)
        assert status == 0, f"login to {volume.iqn}: status {status}\n{output}"
        return self.disk(volume)

    def disk(self, volume: Volume) -> str:
        """The disk of a volume that this initiator is logged in to."""
        self.guest.put("/run/disk-of", DISK_OF)
        return self.guest.check(f"/run/disk-of {volume.iqn} {self.name}").strip()

    def logout(self, volume: Volume) -> None:
        self.guest.check(f"{self._node(volume)} --logout")

    def rescan(self, volume: Volume) -> None:
        self.guest.check(f"{self._node(volume)} --rescan")

    def session_detail(self) -> str:
        """The negotiated parameters of all sessions."""
        return self.guest.check("iscsiadm -m session -P 2")
