"""A volume behind one more member: initiators reach a member that holds nothing of it and forwards everything."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tests.support.member import Member
from tests.support.target import PLAIN, Options, Target, Volume, wait_for


class Forwarded(Target):
    """Two members of a group: volumes are made at the one, and addressed through the other, whose process this is."""

    name = "san-target-forwarded"

    def __init__(self, directory: Path, *options: str) -> None:
        super().__init__(directory)
        store = directory / "store.db"
        self.owner = Member(directory / "owner", "--name", "owner", *options, store=store)
        self.ingress = Member(directory / "ingress", "--name", "ingress", *options, store=store)

    @property
    def pid(self) -> int:
        return self.ingress.pid

    @property
    def other_pids(self) -> list[int]:
        """What else works for it."""
        return [self.owner.pid]

    def start(self) -> None:
        self.owner.start()
        self.ingress.start()

    def kill(self) -> None:
        self.ingress.kill()
        self.owner.kill()

    def create_volume(self, name: str, size_bytes: int, options: Options = PLAIN, *more: str) -> Volume:
        made = self.owner.create_volume(name, size_bytes, options, "--members", "owner", *more)
        wait_for(lambda: self._is_served(name), 30, "the volume is served by the other member")
        return Volume(name, made.iqn, made.lun, self.ingress.portal, made.size_bytes, options)

    def _is_served(self, name: str) -> bool:
        return any(each["name"] == name and each["state"] == "ready" for each in self.ingress.json("volume", "list"))

    def backing_file(self, volume: Volume) -> Path:
        return self.owner.backing_file(volume)

    def _command(self) -> Sequence[str]:
        raise AssertionError("it consists of two processes")

    def _is_ready(self) -> bool:
        raise AssertionError("it consists of two processes")
