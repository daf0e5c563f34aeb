"""Changes of a pool's record of what it holds, as migrations make them. Pure."""

from collections.abc import Iterable, Sequence
from typing import Final

from san_target.storage.records import HeldRange, joined

RECEIVING: Final = "receiving"
"""An attempt of a migration is filling these blocks: they mean nothing."""
SEALED: Final = "sealed"
"""Complete and durable: this member's, if the store says so."""


def overlapping(held: Iterable[HeldRange], start: int, end: int) -> list[HeldRange]:
    """What is recorded of [start, end), cut to it."""
    return [
        HeldRange(max(piece.start_lba, start), min(piece.end_lba, end), piece.generation, piece.state)
        for piece in held
        if piece.start_lba < end and start < piece.end_lba
    ]


def with_state(held: Sequence[HeldRange], start: int, end: int, generation: int, state: str) -> tuple[HeldRange, ...]:
    """[start, end) recorded anew."""
    return joined(sorted([*_outside(held, start, end), HeldRange(start, end, generation, state)], key=_start))


def without(held: Sequence[HeldRange], start: int, end: int, generation: int) -> tuple[HeldRange, ...]:
    """What is recorded of [start, end) under that generation is gone."""
    others = [piece for piece in overlapping(held, start, end) if piece.generation != generation]
    return joined(sorted([*_outside(held, start, end), *others], key=_start))


def _start(piece: HeldRange) -> int:
    return piece.start_lba


def _outside(held: Iterable[HeldRange], start: int, end: int) -> list[HeldRange]:
    kept = []
    for piece in held:
        if piece.start_lba < start:
            kept.append(HeldRange(piece.start_lba, min(piece.end_lba, start), piece.generation, piece.state))
        if piece.end_lba > end:
            kept.append(HeldRange(max(piece.start_lba, end), piece.end_lba, piece.generation, piece.state))
    return kept
