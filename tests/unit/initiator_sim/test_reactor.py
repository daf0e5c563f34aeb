"""The ticks that connections and paths share."""

from __future__ import annotations

import asyncio

from initiator_sim.reactor import TICK_S, Reactor


class Ender:
    """Ends another one when it ticks, as a path ends a connection that is silent."""

    def __init__(self, reactor: Reactor) -> None:
        self.reactor = reactor
        self.other: Ender | None = None
        self.ticks = 0

    def tick(self, now: float) -> None:
        self.ticks += 1
        if self.other is not None:
            self.reactor.remove_ticking(self.other)


def test_what_was_ended_in_a_tick_does_not_tick_in_it() -> None:
    async def scenario() -> None:
        reactor = Reactor()
        pairs = [(Ender(reactor), Ender(reactor)) for _ in range(8)]  # a set has no order: one way or the other
        for one, other in pairs:
            one.other, other.other = other, one
            reactor.add_ticking(one)
            reactor.add_ticking(other)
        await asyncio.sleep(1.5 * TICK_S)
        for one, other in pairs:
            assert one.ticks + other.ticks == 1
            reactor.remove_ticking(one)
            reactor.remove_ticking(other)

    asyncio.run(scenario())
