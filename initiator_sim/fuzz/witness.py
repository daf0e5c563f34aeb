"""Well-behaved sessions: one that goes on throughout and must not notice anything, and fresh ones in between.

With a target the witness reads the same places of its disk again and again, and they must stay the same; without one
it asks for the list of targets in one discovery session.
"""

import asyncio
import time
from random import Random
from typing import Final

from initiator_sim.cdb import inquiry
from initiator_sim.client import Disk, Initiator, ScsiError
from initiator_sim.fuzz.craft import Ground
from initiator_sim.login import LoginError
from initiator_sim.nexus import Event, Kind
from initiator_sim.path import Path
from initiator_sim.session import ProtocolError

_BLOCKS: Final = 8
_PLACES: Final = 16
_INTERVAL_S: Final = 0.02
# What a session that nobody disturbs never meets. That it is asked to move may happen in any group.
_DISTURBED: Final = frozenset({Kind.LOST, Kind.LOGIN_FAILED, Kind.FAILED, Kind.VIOLATION, Kind.TIMED_OUT})
TROUBLE: Final = (LoginError, ProtocolError, ScsiError, LookupError, ValueError, OSError)


class Noticed(Exception):
    """A well-behaved session was disturbed; the message says how."""


class Witness:
    """Open it before the attack, `run` until cancelled. longest_s: of all operations, also the one under way."""

    def __init__(
        self, initiator: Initiator, portal: str, iqn: str | None, patience_s: float, destructive: bool
    ) -> None:
        self.operations = 0
        self._initiator = initiator
        self._portal = portal
        self._iqn = iqn
        self._patience_s = patience_s
        self._compares = not destructive
        self._disk: Disk | None = None
        self._path: Path | None = None
        self._disturbed = ""
        self._longest_s = 0.0
        self._began_s: float | None = None

    @property
    def task(self) -> str:
        """What it does."""
        return "discoveries" if self._iqn is None else "reads"

    @property
    def _what(self) -> str:
        return "a discovery" if self._iqn is None else "a read"

    @property
    def longest_s(self) -> float:
        under_way_s = 0.0 if self._began_s is None else time.monotonic() - self._began_s
        return max(self._longest_s, under_way_s)

    async def open(self, lun: int | None) -> Ground:
        """Log in, and look at what is attacked. Raises what `Initiator.open` raises."""
        async with asyncio.timeout(self._patience_s):
            if self._iqn is None:
                self._path = self._initiator.path(self._portal, None)
                await self._path.connect()
            else:
                self._disk = await self._initiator.open(self._portal, self._iqn, lun=lun)
                self._path = self._disk.paths[0]
        self._path.on_event = self._on_event
        if self._disk is None:
            return Ground(None, self._initiator.name)
        disk = self._disk
        return Ground(self._iqn, self._initiator.name, disk.lun_value, disk.block_bytes, disk.blocks)

    async def close(self) -> None:
        """Log out, if that is still possible."""
        if self._path is None:
            return
        try:
            async with asyncio.timeout(self._patience_s):
                await self._path.close()
        except TROUBLE:
            self._path.abort()

    def _on_event(self, path: Path, event: Event) -> None:
        if event.kind in _DISTURBED and not self._disturbed:
            self._disturbed = f"{event.kind.value} {event.text}".strip()

    async def run(self) -> None:
        """Until cancelled. Raises Noticed."""
        chance = Random(0)
        last = 1 if self._disk is None else max(1, self._disk.blocks - _BLOCKS + 1)
        places = [chance.randrange(last) for _ in range(_PLACES)]
        known: dict[int, bytes] = {}
        while True:
            lba = places[self.operations % len(places)]
            data = await self._operate(lba)
            if self._compares and self._disk is not None and known.setdefault(lba, data) != data:
                raise Noticed(f"the blocks from LBA {lba} have changed (unless another host writes to this disk)")
            await asyncio.sleep(_INTERVAL_S)

    async def _operate(self, lba: int) -> bytes:
        self._began_s = time.monotonic()
        operation = asyncio.ensure_future(self._one(lba))
        try:
            async with asyncio.timeout(self._patience_s):
                data = await operation
        except TimeoutError:
            raise Noticed(self._disturbed or f"{self._what} has no answer within {self._patience_s:g} s") from None
        except TROUBLE as error:
            raise Noticed(self._disturbed or f"{self._what} fails: {error or type(error).__name__}") from None
        self._longest_s, self._began_s = self.longest_s, None
        if self._disturbed:
            raise Noticed(self._disturbed)
        self.operations += 1
        return data

    async def _one(self, lba: int) -> bytes:
        if self._disk is not None:
            return await self._disk.read(lba, min(_BLOCKS, self._disk.blocks))
        assert self._path is not None
        return await self._path.text([("SendTargets", "All")])


async def fresh_login(initiator: Initiator, portal: str, iqn: str | None, lun: int | None, patience_s: float) -> None:
    """A new session from its login to its logout: discovery, or a look at the disk with a read. Raises Noticed."""
    try:
        async with asyncio.timeout(patience_s):
            if iqn is None:
                await initiator.discover(portal)
                return
            async with initiator.connect(portal, iqn, lun=lun) as disk:  # it asks for the capacity
                await disk.execute(inquiry(), read_bytes=255)
                await disk.read(0, 1)
    except TimeoutError:
        raise Noticed(f"a fresh login and a read have no end within {patience_s:g} s") from None
    except TROUBLE as error:
        raise Noticed(f"a fresh login fails: {error or type(error).__name__}") from None
