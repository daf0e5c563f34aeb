"""Links that are cut, stalled, reset and made again at any moment, under requests: each ends once, and nothing that was
sent over an earlier connection is executed after something sent over a later one."""

import asyncio
import itertools
from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from san_target.peer.frames import Answer, Operation, Request, Status
from san_target.peer.link import PeerUnreachable
from tests.support.virtual_time import run
from tests.unit.peer.kit import World, turns, world

SENDS = st.sampled_from(["send", "many", "ask"])
ACTIONS = st.tuples(
    st.sampled_from(["hold", "unread", "stall", "wait"]),  # what hinders
    SENDS,
    st.sampled_from(["wait", "nothing"]),
    st.sampled_from(["cut", "reset", "nothing"]),  # what ends the connection
    st.sampled_from([0.001, 0.2, 4.0]),
    SENDS,
    st.sampled_from(["wait", "nothing"]),
    st.sampled_from(["release", "read", "go on", "nothing"]),
)
EPISODES = st.lists(ACTIONS, min_size=1, max_size=5)


class Load:
    """Sends requests that carry the number of connections before theirs, and counts what comes of each."""

    def __init__(self, both: World) -> None:
        self._both = both
        self.ends: dict[int, list[int]] = {}
        self.waiting: list[asyncio.Task[None]] = []
        self._numbers = iter(range(1, 1_000_000))

    def _request(self) -> tuple[int, Request]:
        number = next(self._numbers)
        return number, Request(Operation.WRITE, lba=number, payload=number.to_bytes(8, "big"))

    def send(self) -> None:
        number, request = self._request()
        request.epoch = self._both.link.losses
        done = self._done(number)
        if self._both.link.try_send(request, done, self._both.a.now_s() + 5):
            self.ends[number] = []

    def _done(self, number: int) -> Callable[[Answer], None]:
        return lambda answer: self.ends[number].append(answer.status)

    def ask(self) -> None:
        self.waiting.append(asyncio.ensure_future(self._ask()))

    async def _ask(self) -> None:
        number, request = self._request()
        request.operation = Operation.OR_WRITE
        self.ends[number] = []
        try:
            answer = await self._both.link.request(request, self._both.a.now_s() + 4)
        except PeerUnreachable as error:
            self.ends[number].append(Status.LOST if error.maybe_executed else Status.UNSENT)
        else:
            self.ends[number].append(answer.status)


def act(both: World, load: Load, action: str) -> None:
    match action:
        case "send":
            load.send()
        case "many":
            for _ in range(40):
                load.send()
        case "ask":
            load.ask()
        case "cut":
            both.wires.cut()
        case "stall":
            both.wires.dead = True
        case "go on":
            both.wires.revive()
        case "hold":
            both.owner.hold = True
        case "release":
            both.owner.release()
        case "reset":
            both.link.reset("because")
        case "unread":  # what arrives at the owner stays in its socket
            both.transports[1].pause()
        case "read":
            for _caller, answerer in both.wires.connections:
                answerer.resume()


@settings(deadline=None, max_examples=150)
@given(episodes=EPISODES, chunk=st.sampled_from([0, 60, 1000]), begun=st.booleans())
def test_life(episodes: list[tuple[str | float, ...]], chunk: int, begun: bool) -> None:
    async def scenario() -> None:
        async with world() as both:
            both.wires.chunk = chunk
            both.owner.begun = begun
            load = Load(both)
            for action in itertools.chain.from_iterable(episodes):
                if isinstance(action, float):
                    await asyncio.sleep(action)
                elif action == "wait":
                    await turns(3)
                else:
                    act(both, load, action)
            act(both, load, "read")
            both.wires.revive()
            both.owner.release()
            await asyncio.gather(*load.waiting)
            await both.up(20)
            await asyncio.sleep(6)
            check(both, load)

    run(scenario())


def check(both: World, load: Load) -> None:
    executed = {request.lba: request for request in both.owner.requests if request.request_id in both.owner.executed}
    for number, ends in load.ends.items():
        assert len(ends) == 1, f"request {number} ended {ends}"
        if ends[0] == Status.GOOD:
            assert number in executed
        elif ends[0] == Status.UNSENT:
            assert number not in executed
    plain = [request for request in executed.values() if request.operation == Operation.WRITE]
    order = {request_id: index for index, request_id in enumerate(both.owner.executed)}
    connections = [request.epoch for request in sorted(plain, key=lambda request: order[request.request_id])]
    assert connections == sorted(connections), "something of an earlier connection came after something of a later one"
    assert {lane.requests for lane in both.link._by_operation} == {0}
    assert {lane.bytes for lane in both.link._by_operation} == {0}
    assert not both.link._pending
    assert not both.service._unfinished
