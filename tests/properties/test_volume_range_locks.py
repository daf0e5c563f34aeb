"""Range locks against a naive model: a request is granted when nothing earlier, still there, is in its way."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from san_target.volume.range_locks import RangeLock, RangeLocks

# Ranges small and large, near the borders of buckets, and wide ones.
starts = st.one_of(st.integers(0, 20), st.integers(2040, 2060), st.just(100_000))
lengths = st.one_of(st.integers(1, 12), st.just(4096), st.just(1_000_000))
requests = st.tuples(st.just("acquire"), starts, lengths, st.booleans())
removals = st.tuples(st.sampled_from(["release", "cancel"]), st.integers(0, 30))


@given(st.lists(st.one_of(requests, requests, removals), max_size=40))
def test_grants_are_those_of_the_model(steps) -> None:
    asyncio.run(asyncio.wait_for(play(steps), 60))


async def play(steps) -> None:
    locks = RangeLocks()
    alive: list[tuple[int, int, bool, asyncio.Task[RangeLock]]] = []

    def in_the_way(start: int, end: int, exclusive: bool, earlier) -> bool:
        return any(low < end and start < high and (exclusive or other) for low, high, other, _task in earlier)

    async def check() -> None:
        for _turn in range(4):
            await asyncio.sleep(0)
        for index, (start, end, exclusive, task) in enumerate(alive):
            assert task.done() == (not in_the_way(start, end, exclusive, alive[:index]))
        assert locks.idle == (not alive)
        assert len(locks) == len(alive)

    for step in steps:
        if step[0] == "acquire":
            _name, start, length, exclusive = step
            blocked = in_the_way(start, start + length, exclusive, alive)
            assert locks.conflicts(start, length, exclusive) == blocked
            alive.append(
                (start, start + length, exclusive, asyncio.create_task(locks.acquire(start, length, exclusive)))
            )
        elif alive:
            name, number = step
            *_range, task = entry = alive[number % len(alive)]
            if task.done():
                locks.release(task.result())
                alive.remove(entry)
            elif name == "cancel":
                task.cancel()
                alive.remove(entry)
        await check()
    while alive:
        entry = next(entry for entry in alive if entry[3].done())
        locks.release(entry[3].result())
        alive.remove(entry)
        await check()
