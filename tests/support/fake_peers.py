"""Members that ask each other control messages in one process; faults and delays are set by tests."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from san_target.peer import messages
from san_target.peer.link import PeerRefused, PeerUnreachable
from san_target.peer.messages import Message


@dataclass(frozen=True)
class FakeMember:
    """As the membership view shows a member."""

    name: str
    portals: tuple[str, ...] = ()
    peer: str = "127.0.0.1:3300"
    admin: str = "127.0.0.1:3280"
    alive: bool = True
    state: str = "active"
    incarnation: int = 1


@dataclass(frozen=True)
class FakeLink:
    """As a link shows itself."""

    state: str


@dataclass
class FakePeers:
    """`Peers` of all members at once. handlers: member -> kind of message -> function that answers it.

    down: members without a link; silent: those that never answer; lose_answers: they do what is asked, and the answer
    is lost; delay_s: before an answer; asked: (member, message) in order.
    """

    handlers: dict[str, dict[type[Message], Callable[[Any], Message]]] = field(default_factory=dict)
    down: set[str] = field(default_factory=set)
    silent: set[str] = field(default_factory=set)
    lose_answers: set[str] = field(default_factory=set)
    delay_s: dict[str, float] = field(default_factory=dict)
    asked: list[tuple[str, Message]] = field(default_factory=list)

    def link(self, member: str) -> FakeLink:
        return FakeLink("connecting" if member in self.down else "up")

    async def ask(self, member: str, message: Message, timeout_s: float) -> Message:
        self.asked.append((member, message))
        if member in self.down:
            raise PeerUnreachable("there is no link", maybe_executed=False)
        try:
            async with asyncio.timeout(timeout_s):
                if member in self.silent:
                    await asyncio.Event().wait()
                await asyncio.sleep(self.delay_s.get(member, 0))
                handler = self.handlers.get(member, {}).get(type(message))
                if handler is None:
                    raise PeerRefused(f"no {type(message).__name__} here")
                # Over the wire and back, as a real peer would see them.
                answer = messages.encode(handler(messages.decode(messages.encode(message))))
                if member in self.lose_answers:
                    await asyncio.Event().wait()
                return messages.decode(answer)
        except TimeoutError:
            raise PeerUnreachable("no answer in time", maybe_executed=True) from None

    def kinds_asked(self) -> list[tuple[str, str]]:
        return [(member, type(message).__name__) for member, message in self.asked]
