"""What happened in a run, in order: hashed always, kept where somebody wants to read it."""

from __future__ import annotations

import hashlib
from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tests.simulation.loop import VirtualLoop

KEPT: Final = 400


class Trace:
    """Lines of "time step text". kept: the last ones; with `show` each is printed as it is written."""

    def __init__(self, loop: VirtualLoop, show: bool = False, kept: int = KEPT) -> None:
        self._loop = loop
        self._show = show
        self._hash = hashlib.blake2b(digest_size=16)
        self.kept: deque[str] = deque(maxlen=kept)

    def note(self, text: str) -> None:
        # The number of the step is part of it: runs that do the same by another way are not the same.
        line = f"{self._loop.time():.6f} {self._loop.steps} {text}"
        self._hash.update(line.encode())
        self.kept.append(line)
        if self._show:
            print(line)

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()
