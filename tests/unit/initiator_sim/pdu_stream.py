"""What the unit tests feed to the initiator's state machines: PDUs as a target would send them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from initiator_sim.login import LoggedIn
from initiator_sim.parameters import Parameters
from initiator_sim.session import Session
from initiator_sim.task import Task
from san_target.wire import pdus
from san_target.wire.framer import Pdu


def pdu(opcode: int, data: bytes = b"", **fields: Any) -> Pdu:
    return Pdu(pdus.build(opcode, len(data), **fields), b"", memoryview(data), True)


class Recording:
    """Reactions that remember what they heard."""

    def __init__(self) -> None:
        self.messages: list[tuple[int, tuple[int, int, int, int], bytes]] = []
        self.rejects: list[int] = []

    def async_message(self, event: int, parameters: tuple[int, int, int, int], data: bytes) -> None:
        self.messages.append((event, parameters, data))

    def rejected(self, reason: int, bhs: bytes) -> None:
        self.rejects.append(reason)


class Driver:
    """A logged-in session, and a target that counts its own StatSN."""

    def __init__(self, window: int = 32, depth: int = 128, first_cmd_sn: int = 1, **parameters: Any) -> None:
        self.heard = Recording()
        last = first_cmd_sn + window - 1 & 0xFFFFFFFF
        login = LoggedIn(Parameters(**parameters), 1, first_cmd_sn, 100, first_cmd_sn, last)
        self.session = Session(login, self.heard, depth)
        self.stat_sn = 100
        self.exp_cmd_sn = first_cmd_sn
        self.max_cmd_sn = last
        self.done: list[Task] = []

    def task(self, **options: Any) -> Task:
        return Task(options.pop("cdb", b"\x88"), self.done.append, keep_data=True, **options)

    def sent(self) -> list[tuple[Any, bytes]]:
        """The PDUs sent since the last call: parsed headers and their data. Without digests."""
        stream = b"".join(bytes(buffer) for buffer in self.session.outgoing)
        self.session.outgoing.clear()
        return list(cut(stream))

    def receive(self, opcode: int, data: bytes = b"", counts: bool = True, **fields: Any) -> None:
        """One PDU from the target; if it counts it takes the next StatSN."""
        numbers = {"stat_sn": self.stat_sn, "exp_cmd_sn": self.exp_cmd_sn, "max_cmd_sn": self.max_cmd_sn}
        if counts:
            self.stat_sn = self.stat_sn + 1 & 0xFFFFFFFF
        self.session.receive(iter([pdu(opcode, data, **(numbers | fields))]))


def cut(stream: bytes) -> Iterator[tuple[Any, bytes]]:
    while stream:
        header = pdus.parse(stream[:48])
        end = 48 + header.data_segment_length
        yield header, stream[48:end]
        stream = stream[end + -end % 4 :]
