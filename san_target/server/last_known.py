"""The group's records for those who look: as the store has them now; while it is away, as this member knew them last.

Whoever changes something asks the store. Whoever looks in an outage shall see something, and that it may be old.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, TypeVar

from san_target.group.errors import NotFound
from san_target.group.members import MemberView, view_of
from san_target.group.membership import LEASES_PREFIX, member_records
from san_target.metadata.schema import LeaseRecord, decode
from san_target.metadata.store import StoreError

if TYPE_CHECKING:
    from san_target.metadata.schema import VolumeRecord
    from san_target.server.member import Member

T = TypeVar("T")

ANSWER_S: Final = 2.0
ANSWER_AWAY_S: Final = 0.5
"""The same while it is known already that the store does not answer."""
OLD: Final = "the store does not answer, and this is what was known last"


class LastKnown:
    """Each answer comes with what is to be said of it: "" as the store says now, or OLD.

    problem: why the store did not answer when it was asked last, or "".
    """

    def __init__(self, member: "Member") -> None:
        self._member = member
        self.problem = ""

    async def members(self) -> tuple[list[MemberView], str]:
        """By name, removed ones too."""
        view = self._member.members.view
        return await self._look(self._stored_members(), lambda: [view[name] for name in sorted(view)])

    async def _stored_members(self) -> list[MemberView]:
        store = self._member.store
        leases = [decode(LeaseRecord, item.value, item.key) for item in (await store.range(LEASES_PREFIX)).items]
        alive = {lease.name: lease.incarnation for lease in leases}
        return [view_of(record, alive.get(record.name)) for record in await member_records(store)]

    async def volumes(self) -> "tuple[list[VolumeRecord], str]":
        """By name, those being deleted too."""
        return await self._look(self._member.volumes.all(), self._member.exports.records)

    async def volume(self, name: str) -> "tuple[VolumeRecord, str]":
        """NotFound, also if it is only not known here."""
        records, old = await self.volumes()
        for record in records:
            if record.name == name:
                return record, old
        said = f"; {OLD}" if old else ""
        raise NotFound(f"there is no volume {name!r}; `volume list` shows all{said}")

    async def _look(self, ask: Awaitable[T], known: Callable[[], T]) -> tuple[T, str]:
        patience_s = ANSWER_AWAY_S if self._member.exports.store_problem else ANSWER_S
        try:
            async with asyncio.timeout(patience_s):
                found = await ask
        except StoreError as error:
            self.problem = str(error)
        except TimeoutError:
            self.problem = f"the store did not answer within {patience_s} s"
        else:
            self.problem = ""
            return found, ""
        return known(), OLD
