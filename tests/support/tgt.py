"""tgt, a target that Debian packages: the peer of the benchmarks, and a stand-in that proves tests sound."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.support.target import PLAIN, Options, Target, Volume, free_port
from tests.support.tools import find

LUN = 1  # tgt's LUN 0 is its controller


class Tgt(Target):
    """One tgtd with a control port of its own. It keeps nothing over a restart, so the handle defines all again.

    `backing_type`: rdwr (tgt's default) or aio.
    """

    name = "tgt"

    def __init__(self, directory: Path, backing_type: str = "rdwr") -> None:
        super().__init__(directory)
        self._backing_type = backing_type
        self._control_port = str(free_port())  # any number that no other tgtd uses
        self._volumes: list[Volume] = []

    def _command(self) -> Sequence[str]:
        return [find("tgtd"), "-f", "-C", self._control_port, "--iscsi", f"portal={self.portal}"]

    def _environment(self) -> dict[str, str]:
        # Of the working directory: the whole path may be longer than the name of a socket can be.
        return {**os.environ, "TGT_IPC_SOCKET": "tgt-control"}

    def _admin(self, *arguments: str, check: bool = True) -> bool:
        done = subprocess.run(
            [find("tgtadm"), "-C", self._control_port, "--lld", "iscsi", *arguments],
            capture_output=True,
            text=True,
            cwd=self.directory,
            env=self._environment(),
            timeout=30,
            check=False,
        )
        assert done.returncode == 0 or not check, f"tgtadm {' '.join(arguments)}: {done.stdout}{done.stderr}"
        return done.returncode == 0

    def _is_ready(self) -> bool:
        return self._admin("--mode", "target", "--op", "show", check=False)

    def restart(self) -> None:
        super().restart()
        for number, volume in enumerate(self._volumes, start=1):
            self._define(number, volume)

    def create_volume(self, name: str, size_bytes: int, options: Options = PLAIN) -> Volume:
        volume = Volume(name, f"iqn.2026-01.org.example.tgt:{name}", LUN, self.portal, size_bytes, options)
        with self.backing_file(volume).open("wb") as file:
            file.truncate(size_bytes)
        self._volumes.append(volume)
        self._define(len(self._volumes), volume)
        return volume

    def add_portal(self) -> str:
        """One more portal, on a free port; HOST:PORT."""
        portal = f"127.0.0.1:{free_port()}"
        self._admin("--mode", "portal", "--op", "new", "--param", f"portal={portal}")
        return portal

    def _define(self, number: int, volume: Volume) -> None:
        target = ("--tid", str(number))
        unit = ("--mode", "logicalunit", *target, "--lun", str(LUN))
        options = volume.options
        self._admin("--mode", "target", "--op", "new", *target, "--targetname", volume.iqn)
        for key in ("HeaderDigest", "DataDigest"):
            self._admin("--mode", "target", "--op", "update", *target, "--name", key, "--value", "CRC32C,None")
        storage = ("--backing-store", str(self.backing_file(volume)), "--bstype", self._backing_type)
        self._admin(*unit, "--op", "new", *storage, "--blocksize", str(options.block_size))
        parameters = f"thin_provisioning=1,readonly={options.read_only:d},removable={options.removable:d}"
        self._admin(*unit, "--op", "update", "--params", parameters)
        for user, direction in ((options.chap, ()), (options.mutual_chap, ("--outgoing",))):
            if user is not None:
                self._admin("--mode", "account", "--op", "new", "--user", user.user, "--password", user.secret)
                self._admin("--mode", "account", "--op", "bind", *target, "--user", user.user, *direction)
        self._admin("--mode", "target", "--op", "bind", *target, "--initiator-address", "ALL")

    def backing_file(self, volume: Volume) -> Path:
        return self.directory / f"{volume.name}.blocks"
