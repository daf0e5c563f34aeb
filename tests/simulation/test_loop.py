"""The event loop of the simulation: time that jumps, processes that stop and die."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Coroutine
from typing import Any

import pytest

from tests.simulation.loop import PROCESS, START_S, Process, Stuck, VirtualLoop


def run(main: Coroutine[Any, Any, Any], loop: VirtualLoop | None = None, steps_max: int = 10_000) -> Any:
    loop = loop or VirtualLoop()
    try:
        return loop.run(main, START_S + 1000, steps_max)
    finally:
        loop.close()


def test_waiting_costs_no_time_and_computing_none_of_it() -> None:
    async def main() -> list[float]:
        loop = asyncio.get_running_loop()
        seen = [loop.time()]
        await asyncio.sleep(500)
        seen.append(loop.time())
        for _ in range(100):
            await asyncio.sleep(0)
        seen.append(loop.time())
        return seen

    assert run(main()) == [START_S, START_S + 500, START_S + 500]


def test_calls_run_in_the_order_of_time_and_then_of_planning() -> None:
    async def main() -> list[int]:
        loop = asyncio.get_running_loop()
        seen: list[int] = []
        for number, delay_s in enumerate((2.0, 1.0, 1.0, 0.0)):
            loop.call_later(delay_s, seen.append, number)
        loop.call_soon(seen.append, 4)
        loop.call_later(0.5, seen.append, 5).cancel()
        await asyncio.sleep(3)
        return seen

    assert run(main()) == [4, 3, 1, 2, 0]


def test_what_can_never_end_is_found() -> None:
    async def dead() -> None:
        await asyncio.get_running_loop().create_future()

    async def busy() -> None:
        while True:
            await asyncio.sleep(0)

    async def late() -> None:
        await asyncio.sleep(2000)

    for main, words in ((dead, "nothing is planned"), (busy, "steps"), (late, "no end after 1000 s")):
        with pytest.raises(Stuck, match=words):
            run(main())


def test_what_nobody_catches_is_kept() -> None:
    async def main() -> None:
        asyncio.get_running_loop().call_soon(int, "x")
        await asyncio.sleep(1)

    loop = VirtualLoop()
    run(main(), loop)
    assert len(loop.failures) == 1
    assert "invalid literal" in loop.failures[0]


class Counting:
    """A process that counts, once a second and at each poke from outside."""

    def __init__(self, loop: VirtualLoop) -> None:
        self.process = Process("counting")
        self.counted: list[tuple[float, str]] = []
        self.cleaned_up = False
        self._loop = loop
        self._context = loop.outside.copy()
        self._context.run(PROCESS.set, self.process)
        loop.spawn(self.process, self._count())

    async def _count(self) -> None:
        try:
            while True:
                await asyncio.sleep(1)
                self._note("timer")
        finally:
            self.cleaned_up = True

    def _note(self, what: str) -> None:
        self.counted.append((self._loop.time() - START_S, what))

    def poke(self) -> None:
        self._loop.call_soon(self._note, "poke", context=self._context)


def test_a_stopped_process_sees_what_came_from_outside_before_its_timers() -> None:
    async def main() -> list[tuple[float, str]]:
        one, other = Counting(loop), Counting(loop)
        await asyncio.sleep(1.5)
        loop.stop_process(one.process)
        await asyncio.sleep(1)
        one.poke()
        await asyncio.sleep(1)
        assert one.counted == [(1.0, "timer")]
        assert len(other.counted) == 3
        loop.continue_process(one.process)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return one.counted

    loop = VirtualLoop()
    assert run(main(), loop) == [(1.0, "timer"), (3.5, "poke"), (3.5, "timer")]


def test_nothing_of_a_dead_process_runs_not_even_its_clean_up() -> None:
    async def main() -> None:
        one = Counting(loop)
        await asyncio.sleep(1.5)
        loop.kill_process(one.process)
        one.poke()
        await asyncio.sleep(5)
        assert one.counted == [(1.0, "timer")]
        assert not one.cleaned_up

    loop = VirtualLoop()
    run(main(), loop)


def test_a_task_with_a_context_of_its_own_belongs_to_its_process_too() -> None:
    async def main() -> None:
        process = Process("p")

        async def outer() -> Process | None:
            async def inner() -> Process | None:
                return PROCESS.get()

            return await asyncio.get_running_loop().create_task(inner(), context=contextvars.Context())

        assert await loop.spawn(process, outer()) is process

    loop = VirtualLoop()
    run(main(), loop)
