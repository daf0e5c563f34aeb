"""The group's store over the simulated network: one set of data, and clients that may not reach it.

Every call takes time each way. While the store is away a call fails, at once or after a while; a call that was under
way may have been carried out all the same, and its client cannot know [1]. Watches lag.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from enum import Enum, auto
from typing import TYPE_CHECKING, Final, TypeVar

from san_target.metadata.memory import MemoryData, MemoryStore
from san_target.metadata.store import (
    Compare,
    Delete,
    Item,
    Put,
    Snapshot,
    StoreUnavailable,
    TransactionResult,
    WatchBatch,
)

if TYPE_CHECKING:
    import random

    from tests.simulation.loop import VirtualLoop
    from tests.simulation.network import Machine, Network
    from tests.simulation.trace import Trace

T = TypeVar("T")

PATIENCE_S: Final = 3.0
LINGERS: Final = 8
PAGE_ITEMS: Final = 2
LOOK_S: Final = 0.01


class Fate(Enum):
    """What becomes of the calls of one machine. LOST: they do not arrive; UNHEARD: their answers do not; DEAF: nor
    does what its watches would tell; LATE: calls that change something arrive when this is over. Their client hears
    that the store did not answer."""

    LOST = auto()
    UNHEARD = auto()
    DEAF = auto()
    LATE = auto()


class StoreServer:
    """The store itself. is_away: nobody reaches it; machine: where it runs, for partitions; loses_answers: how likely
    an answer is lost while the store is away."""

    def __init__(self, loop: VirtualLoop, network: Network, random: random.Random, trace: Trace) -> None:
        self.loop = loop
        self.network = network
        self.random = random
        self.trace = trace
        self.machine: Machine = network.add("store")
        self.data = MemoryData(loop.time)
        self.is_away = False
        self.watch_lag_s = (0.0, 0.05)
        self.lags: dict[str, float] = {}  # by machine: how much longer
        self._fates: dict[str, Fate] = {}
        self._late: dict[str, list[Callable[[], None]]] = {}

    def reaches(self, machine: Machine) -> bool:
        network = self.network
        return not (self.is_away or network.is_cut(machine, self.machine) or network.is_cut(self.machine, machine))

    def fate_of(self, machine: Machine) -> Fate | None:
        return self._fates.get(machine.name)

    def set_fate(self, machine: Machine, fate: Fate | None, late_s: float = 0.0) -> None:
        """None: from now on all is well, and what was late arrives after `late_s`."""
        if fate is not None:
            self._fates[machine.name] = fate
            return
        self._fates.pop(machine.name, None)
        for arrive in self._late.pop(machine.name, ()):
            self.loop.call_outside(late_s, arrive)

    def is_late(self, machine: Machine, arrive: Callable[[], None]) -> None:
        self._late.setdefault(machine.name, []).append(arrive)

    def lag(self, machine: Machine) -> float:
        return self.random.uniform(*self.watch_lag_s) + self.lags.get(machine.name, 0.0)


class SimStore(MemoryStore):
    """A client: `Store` from one machine, used by the process that calls."""

    def __init__(self, server: StoreServer, machine: Machine) -> None:
        super().__init__(server.data)
        self._server = server
        self._machine = machine

    async def _call(self, what: str, function: Callable[[], T], changes: bool = False) -> T:
        """Carry out `function` at the store, after a while; hear of it after another. StoreUnavailable."""
        server, machine = self._server, self._machine
        loop, network = server.loop, server.network
        heard = loop.create_future()

        def fail() -> None:
            if not heard.done():
                heard.set_exception(StoreUnavailable(f"the store does not answer ({what})"))

        def arrive() -> None:
            fate = server.fate_of(machine)
            if fate is Fate.LOST or (fate is Fate.LATE and not changes):
                loop.call_outside(PATIENCE_S, fail)
                return
            if fate is Fate.LATE:
                server.is_late(machine, carry_out)
                loop.call_outside(PATIENCE_S, fail)
                return
            if not server.reaches(machine):
                if changes and server.random.random() < 0.5:
                    linger(LINGERS)
                else:
                    loop.call_outside(server.random.choice((0.0, 0.1, PATIENCE_S)), fail)
                return
            carry_out()

        def linger(times: int) -> None:
            """The network keeps it: its client gives up, and it may be carried out afterwards."""
            if times == LINGERS:
                loop.call_outside(PATIENCE_S, fail)
            if server.reaches(machine):
                carry_out()
            elif times:
                loop.call_outside(1.0, linger, times - 1)

        def carry_out() -> None:
            try:
                result = function()
            except Exception as error:
                loop.call_outside(network.delay(server.machine, machine), _set_exception, heard, error)
                return
            if changes:
                server.trace.note(f"{machine.name}: store {what}: {_short(result)}")
            loop.call_outside(network.delay(server.machine, machine), answer, result)

        def answer(result: T) -> None:
            if not server.reaches(machine) or server.fate_of(machine) in (Fate.UNHEARD, Fate.DEAF):
                loop.call_outside(PATIENCE_S, fail)  # done, but nobody hears of it
            elif not heard.done():
                heard.set_result(result)

        loop.call_outside(network.delay(machine, server.machine), arrive)
        found: T = await heard
        return found

    async def open(self) -> None:
        await super().open()
        await self._call("open", lambda: None)

    async def get(self, key: str) -> Item | None:
        data = self._opened()
        return await self._call(f"get {key}", lambda: data.get(key))

    async def range(self, prefix: str) -> Snapshot:
        data = self._opened()
        return await self._call(f"range {prefix}", lambda: data.range(prefix))

    async def pages(self, prefix: str) -> AsyncIterator[Snapshot]:
        whole = await self.range(prefix)
        for start in range(0, max(1, len(whole.items)), PAGE_ITEMS):
            yield Snapshot(whole.items[start : start + PAGE_ITEMS], whole.revision)

    async def transact(self, compares: Sequence[Compare], operations: Sequence[Put | Delete]) -> TransactionResult:
        data = self._opened()
        keys = ",".join(each.key for each in operations)
        return await self._call(f"transaction on {keys}", lambda: data.transact(compares, operations), True)

    async def grant_lease(self, ttl_s: float) -> int:
        data = self._opened()
        return await self._call("grant", lambda: data.grant_lease(ttl_s), True)

    async def renew_lease(self, lease_id: int) -> bool:
        data = self._opened()
        return await self._call("renewal", lambda: data.renew_lease(lease_id), True)

    async def revoke_lease(self, lease_id: int) -> None:
        data = self._opened()
        await self._call("revocation", lambda: data.revoke_lease(lease_id), True)

    async def watch(self, prefix: str, from_revision: int) -> AsyncIterator[WatchBatch]:
        """Late, in order, and broken while the store is away."""
        server, machine, loop = self._server, self._machine, self._server.loop
        await self._call(f"watch {prefix}", lambda: None)
        seen_s = loop.time()
        async for batch in super().watch(prefix, from_revision):
            seen_s = max(seen_s, loop.time() + server.lag(machine))
            await _until(loop, seen_s)
            while server.fate_of(machine) is Fate.DEAF:
                await _until(loop, loop.time() + LOOK_S)
            if not server.reaches(machine):
                raise StoreUnavailable("the watch was interrupted")
            yield batch


async def _until(loop: VirtualLoop, when: float) -> None:
    woken = loop.create_future()
    loop.call_at(when, _wake, woken)
    await woken


def _wake(future: object) -> None:
    if not future.done():  # type: ignore[attr-defined]
        future.set_result(None)  # type: ignore[attr-defined]


def _set_exception(future: object, error: Exception) -> None:
    if not future.done():  # type: ignore[attr-defined]
        future.set_exception(error)  # type: ignore[attr-defined]


def _short(result: object) -> str:
    if isinstance(result, TransactionResult):
        return f"{'revision' if result.succeeded else 'refused at'} {result.revision}"
    return str(result)
