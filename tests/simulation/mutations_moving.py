"""Rules of migrations taken out of the product, one by one: what the mutants of `mutants` change."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from san_target.group import migration, migrator, moving_volume
from san_target.group.migration import Event, Piece
from san_target.group.piece_mover import PieceMover
from san_target.metadata.schema import MigrationRecord, decode, migration_key
from san_target.peer.frames import Operation
from san_target.server import migrations
from san_target.server.migrations import Migrations
from san_target.volume.held import RECEIVING, SEALED, with_state, without
from san_target.volume.mirror import Mirror
from san_target.volume.origin import Overtaken
from san_target.volume.partition_map import MapSnapshot
from san_target.volume.receiver import Receiver
from san_target.volume.router import Router
from tests.simulation.mutations import Patch

LATE_S = 0.05


def _do(name: str, step: Callable[..., Any]) -> list[Patch]:
    return [(PieceMover, name, step)]


async def _nothing(_self: PieceMover) -> None:
    pass


def nothing_is_mirrored() -> list[Patch]:
    return [(Mirror, "wants", lambda _self, _start, _end: False)]


def copies_take_no_lock() -> list[Patch]:
    async def copy_blocks(self: PieceMover, lba: int, blocks: int) -> None:
        local = self._volume.local
        await self._on().send_blocks(Operation.COPY, local.file, local.threads, lba, blocks)

    return _do("_copy_blocks", copy_blocks)


def spoiled_attempts_are_committed() -> list[Patch]:
    return _do("_check_clean", lambda _self: None)


def commits_take_no_lock() -> list[Patch]:
    return _do("_take_lock", _nothing)


def migrations_take_what_came_back() -> list[Patch]:
    def to_move(snapshot: MapSnapshot, record: MigrationRecord, _generation: int, start: int) -> Iterator[Piece]:
        return migration.owned(snapshot, record.source, start, record.end_lba)

    return [(migration, "to_move", to_move)]


def the_mirror_may_fail_in_doubt() -> list[Patch]:
    return _do("_require", _nothing)


def an_old_value_says_not_committed() -> list[Patch]:
    async def look_into_store(self: PieceMover) -> Event:
        item = await self._source.store.get(migration_key(self._journal.record.id))
        if item is None:
            return Event.REFUSED
        found = decode(MigrationRecord, item.value, item.key)
        if self._committed is not None and found.nonce == self._committed.nonce:
            return self._note_commit(item.mod_revision)
        self._journal.record, self._journal.revision = found, item.mod_revision
        return Event.REFUSED

    return _do("_look_into_store", look_into_store)


def prepare_empties_nothing() -> list[Patch]:
    async def empty(self: Receiver, peer: Any, request: Any, volume: Any) -> None:
        await self._seen(request.revision)
        start, end = request.lba, request.lba + request.blocks
        await volume.change_held(lambda held: with_state(held, start, end, request.generation, RECEIVING))

    return [(Receiver, "_empty", empty)]


def sealing_makes_nothing_durable() -> list[Patch]:
    async def seal(self: Receiver, peer: Any, request: Any, volume: Any) -> None:
        reception = self._receptions.get((request.volume_id, request.generation))
        if reception is None or not reception.fits(peer, request):
            raise Overtaken("the attempt is over")
        await reception.idle.wait()
        start, end, generation = reception.start, reception.end, reception.generation
        await volume.change_held(lambda held: with_state(held, start, end, generation, SEALED))

    return [(Receiver, "_seal", seal)]


def generations_do_not_matter() -> list[Patch]:
    def serves_under(self: Router, lba: int, blocks: int, _generation: int) -> bool:
        return self.serves(lba, blocks)

    return [(Router, "serves_under", serves_under)]


def the_record_of_what_is_held_does_not_matter() -> list[Patch]:
    def served_at(self: Router, lba: int) -> tuple[int, int] | None:
        for start, end, placement in self.snapshot.ranges(lba):
            if start <= lba < end and placement.owner == self.member_name:
                return end, placement.generation
            break
        return None

    return [(Router, "_served_at", served_at)]


def earlier_changes_are_not_waited_for() -> list[Patch]:
    return _do("_drain", _nothing)


def what_was_sealed_is_dropped_at_a_start() -> list[Patch]:
    """A later life of the destination does not ask the store whose a sealed piece is."""
    return [(Migrations, "_mine", lambda _self, _export, _piece: [])]


def blocks_that_come_back_may_still_be_cleared() -> list[Patch]:
    """The source punches what it remembers, without another look at its record; PREPARE does not mind what is there."""

    async def clear_moved(moving: Any, member_name: str) -> None:
        volume = moving.volume
        for piece in moving_volume.gone(moving, member_name) if volume is not None else ():
            await asyncio.sleep(LATE_S)
            await volume.local.clear(piece.start_lba, piece.end_lba - piece.start_lba)
            change = partial(without, start=piece.start_lba, end=piece.end_lba, generation=piece.generation)
            await moving.change_held(change)

    async def empty(self: Receiver, peer: Any, request: Any, volume: Any) -> None:
        await self._seen(request.revision)
        start, end = request.lba, request.lba + request.blocks
        await volume.change_held(lambda held: with_state(held, start, end, request.generation, RECEIVING))
        await volume.local.clear(start, end - start)

    return [
        (migrator, "clear_moved", clear_moved),
        (migrations, "clear_moved", clear_moved),
        (Receiver, "_empty", empty),
    ]
