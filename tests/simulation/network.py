"""Machines, what lies between them, and TCP connections over it, with what kernels do about dying processes.

A connection has two ends and two directions. What a process sends goes into its kernel's buffer and arrives after a
delay, in order. Where the way is cut it stays with the sender's kernel, which sends it again when the way is back, even
if the process has died by then [28b] - unless the socket lingers for 0 s, which drops it (SO_LINGER). What has arrived
waits in the receiver's kernel, however long its process is stopped. A machine without power forgets all its
connections without a word, and answers whatever comes for them later with a reset.
"""

from __future__ import annotations

import itertools
from collections import deque
from typing import TYPE_CHECKING, Final

from tests.simulation.loop import PROCESS, Process, State

if TYPE_CHECKING:
    import random

    from tests.simulation.loop import Handle, VirtualLoop
    from tests.simulation.trace import Trace

RETRANSMIT_S: Final = (0.2, 1.0)
SYN_RETRY_S: Final = 1.0
BUFFER_BYTES: Final = 1 << 18


class Fin:
    """The end of a stream."""


class Reset:
    """The end of a connection."""


Item = bytes | type[Fin] | type[Reset]


class Machine:
    """A computer in the network. listeners: by port."""

    def __init__(self, network: Network, name: str, address: str) -> None:
        self.network = network
        self.name = name
        self.address = address
        self.has_power = True
        self.ends: dict[End, None] = {}
        self.listeners: dict[int, Listener] = {}
        self._ports = itertools.count(40000)

    def free_port(self) -> int:
        return next(self._ports)

    def process_ended(self, process: Process) -> None:
        """Its kernel closes what it had open."""
        for listener in [each for each in self.listeners.values() if each.process is process]:
            listener.close()
        for end in [each for each in self.ends if each.process is process]:
            end.close()

    def lose_power(self) -> None:
        self.has_power = False
        self.listeners.clear()
        for end in list(self.ends):
            end.vanish()


class Network:
    """delay_s: bounds of the time that anything needs from machine to machine. slow: how much longer, by pair of names.

    fragments: the share of receives that get only a part of what is there. buffer_bytes: of a connection's direction.
    """

    def __init__(self, loop: VirtualLoop, random: random.Random, trace: Trace, delay_s: tuple[float, float]) -> None:
        self.loop = loop
        self.random = random
        self.trace = trace
        self.delay_s = delay_s
        self.buffer_bytes = BUFFER_BYTES
        self.fragments = 0.02
        self.slow: dict[frozenset[str], float] = {}
        self.machines: dict[str, Machine] = {}  # by address
        self._cuts: dict[tuple[str, str], None] = {}
        self._stalled: dict[Direction, None] = {}

    def add(self, name: str) -> Machine:
        machine = Machine(self, name, f"10.0.0.{len(self.machines) + 1}")
        self.machines[machine.address] = machine
        return machine

    def delay(self, source: Machine, target: Machine) -> float:
        low, high = self.delay_s
        seconds = low + (high - low) * self.random.random()
        if self.slow:
            seconds *= self.slow.get(frozenset((source.name, target.name)), 1.0)
        return seconds

    # Faults -----------------------------------------------------------------------------------------------------------

    def cut(self, source: str, target: str) -> None:
        """From now on nothing gets from one machine to another."""
        self._cuts[source, target] = None

    def heal(self, source: str, target: str) -> None:
        self._cuts.pop((source, target), None)
        self.send_again()

    def is_cut(self, source: Machine, target: Machine) -> bool:
        return (source.name, target.name) in self._cuts or not target.has_power

    def power_is_back(self, machine: Machine) -> None:
        machine.has_power = True
        self.send_again()

    def stalled(self, direction: Direction) -> None:
        self._stalled[direction] = None

    def send_again(self) -> None:
        """The way may be free: kernels find out when they try again."""
        stalled, self._stalled = self._stalled, {}
        for direction in stalled:
            self.loop.call_outside(self.random.uniform(*RETRANSMIT_S), direction.retry)

    # Connecting -------------------------------------------------------------------------------------------------------

    def listen(self, machine: Machine, port: int) -> Listener:
        """OSError where the port is taken."""
        port = port or machine.free_port()
        if port in machine.listeners:
            raise OSError(98, "Address already in use")
        listener = machine.listeners[port] = Listener(self, machine, port)
        return listener

    async def connect(self, machine: Machine, host: str, port: int) -> End:
        """A connection from `machine`, of the process that calls. OSError; where nobody answers there is no end."""
        target = self.machines.get(host)
        if target is None:
            raise OSError(113, "No route to host")
        connected = self.loop.create_future()
        process = PROCESS.get()

        def answer(end: End | None) -> None:
            if connected.done() or (process is not None and process.state is State.DEAD):
                if end is not None:
                    end.abort()
            elif end is None:
                connected.set_exception(ConnectionRefusedError(111, "Connection refused"))
            else:
                connected.set_result(end)

        def knock() -> None:
            if self.is_cut(machine, target) or self.is_cut(target, machine):
                if not connected.done():
                    self.loop.call_outside(SYN_RETRY_S, knock)
                return
            listener = target.listeners.get(port)
            back_s = self.delay(target, machine)
            if listener is None:
                self.loop.call_outside(back_s, answer, None)
                return
            near = End(self, machine, machine.free_port(), process)
            far = End(self, target, port, listener.process)
            near.join(far)
            listener.arrived(far)
            self.loop.call_outside(back_s, answer, near)

        self.loop.call_outside(self.delay(machine, target), knock)
        end: End = await connected
        return end


class Direction:
    """From one end to the other: what is on its way, and since when nothing gets through."""

    __slots__ = ("_is_stalled", "_last_s", "_network", "_source", "_target", "_under_way", "bytes_under_way", "dropped")

    def __init__(self, network: Network, source: End, target: End) -> None:
        self._network = network
        self._source = source
        self._target = target
        self._under_way: deque[tuple[float, Item]] = deque()
        self._last_s = 0.0
        self._is_stalled = False
        self.bytes_under_way = 0
        self.dropped = False  # the sender keeps nothing any more: what gets lost is lost

    def send(self, item: Item) -> None:
        network = self._network
        arrival_s = network.loop.time() + network.delay(self._source.machine, self._target.machine)
        arrival_s = self._last_s = max(self._last_s, arrival_s)
        self._under_way.append((arrival_s, item))
        if isinstance(item, bytes):
            self.bytes_under_way += len(item)
        network.loop.call_at(arrival_s, self._arrive, context=network.loop.outside)

    def drop(self) -> None:
        """The sender's kernel gives up what it has not got through. What is on the wire may still arrive."""
        self.dropped = True
        if self._is_stalled:
            self._lose()

    def _lose(self) -> None:
        self._is_stalled = False
        self._under_way.clear()
        self.bytes_under_way = 0

    def _arrive(self) -> None:
        if self._is_stalled:
            return  # what comes later waits for what came before
        if self._network.is_cut(self._source.machine, self._target.machine):
            if self.dropped:
                self._lose()
            else:
                self._is_stalled = True
                self._network.stalled(self)
            return
        if self._under_way:
            self._take()

    def _take(self) -> None:
        _, item = self._under_way.popleft()
        if isinstance(item, bytes):
            self.bytes_under_way -= len(item)
        self._target.arrived(item)

    def retry(self) -> None:
        """Whatever has waited arrives now, if it can."""
        if not self._is_stalled:
            return
        if self._network.is_cut(self._source.machine, self._target.machine):
            self._network.stalled(self)
            return
        self._is_stalled = False
        now_s = self._network.loop.time()
        while self._under_way and self._under_way[0][0] <= now_s:
            self._take()


class End:
    """One end of a connection, as its machine's kernel keeps it. process: whose it is; None: nobody's."""

    def __init__(self, network: Network, machine: Machine, port: int, process: Process | None) -> None:
        self.network = network
        self.machine = machine
        self.port = port
        self.process = process
        self.lingers_not = False
        self.incoming = bytearray()
        self.error: OSError | None = None
        self._other: End
        self._out: Direction
        self._has_ended = False  # the other side sends no more
        self._is_shut = False  # this side sends no more
        self._is_closed = False
        self._wants_space = False
        self._reader: Handle | None = None
        self._writer: Handle | None = None
        self._reader_planned = False
        self._writer_planned = False
        machine.ends[self] = None

    def join(self, other: End) -> None:
        self._other, other._other = other, self
        self._out, other._out = Direction(self.network, self, other), Direction(self.network, other, self)

    @property
    def address(self) -> tuple[str, int]:
        return self.machine.address, self.port

    @property
    def peer_machine(self) -> Machine:
        return self._other.machine

    @property
    def peer_address(self) -> tuple[str, int]:
        return self._other.address

    # What the process does --------------------------------------------------------------------------------------------

    def send(self, data: bytes) -> int:
        """As much as the kernel takes. BlockingIOError: nothing; OSError: the connection has ended."""
        if self.error is not None:
            raise self.error
        if self._is_closed or self._is_shut:
            raise BrokenPipeError(32, "Broken pipe")
        space = self._space()
        if space <= 0:
            self._wants_space = True
            raise BlockingIOError
        if space < len(data):
            self._wants_space = True
            data = data[:space]
        self._out.send(data)
        return len(data)

    def _space(self) -> int:
        return self.network.buffer_bytes - self._out.bytes_under_way - len(self._other.incoming)

    def receive(self, length: int) -> bytes:
        """At most so many bytes; b"" at the end of the stream. BlockingIOError, OSError."""
        incoming = self.incoming
        if not incoming:
            if self.error is not None:
                raise self.error
            if self._has_ended:
                return b""
            raise BlockingIOError
        network = self.network
        if network.fragments and network.random.random() < network.fragments:
            length = network.random.randint(1, max(1, min(length, len(incoming))))
        data = bytes(incoming[:length])
        del incoming[:length]
        other = self._other
        if other._wants_space and not other._is_closed:
            other._wants_space = False
            network.loop.call_outside(network.delay(self.machine, other.machine), other._plan_writer)
        return data

    def shut(self) -> None:
        """Send no more. OSError."""
        if self.error is not None or self._is_closed:
            raise OSError(107, "Transport endpoint is not connected")
        if not self._is_shut:
            self._is_shut = True
            self._out.send(Fin)

    def close(self) -> None:
        """By the process, or by the kernel at its end."""
        if self._is_closed:
            return
        if self.lingers_not or self.incoming:
            self.abort()
            return
        if not self._is_shut and self.error is None:
            self._out.send(Fin)
        self._forget()

    def abort(self) -> None:
        """Reset: nothing that waits here gets out any more."""
        if self._is_closed:
            return
        if self.error is None:
            self._out.drop()
            self._out.send(Reset)
        self._forget()

    def break_off(self) -> None:
        """Something on the way resets both sides."""
        if self._is_closed or self._other._is_closed:
            return
        for end in (self, self._other):
            end._out.drop()
            end.arrived(Reset)

    def vanish(self) -> None:
        """The machine has lost its power."""
        self._out.drop()
        self._forget()

    def _forget(self) -> None:
        self._is_closed = True
        self.incoming.clear()
        self._reader = self._writer = None
        self.machine.ends.pop(self, None)

    # What comes from outside ------------------------------------------------------------------------------------------

    def arrived(self, item: Item) -> None:
        if self._is_closed:
            if isinstance(item, bytes):
                self._out.send(Reset)
            return
        if self.error is not None:
            return
        if isinstance(item, bytes):
            self.incoming += item
        elif item is Fin:
            self._has_ended = True
        else:
            # What had arrived before can still be read (Linux keeps it).
            self.error = ConnectionResetError(104, "Connection reset by peer")
            self._out.drop()
            self._plan_writer()
        self._plan_reader()

    # Readiness --------------------------------------------------------------------------------------------------------

    def set_reader(self, handle: Handle | None) -> bool:
        before, self._reader = self._reader, handle
        self._plan_reader()
        return before is not None

    def set_writer(self, handle: Handle | None) -> bool:
        before, self._writer = self._writer, handle
        self._plan_writer()
        return before is not None

    def _is_readable(self) -> bool:
        return bool(self.incoming) or self._has_ended or self.error is not None

    def _plan_reader(self) -> None:
        if self._reader is not None and not self._reader_planned and self._is_readable():
            self._reader_planned = True
            self.network.loop.call_soon(self._read, context=self._reader.context)

    def _read(self) -> None:
        self._reader_planned = False
        if self._reader is not None and self._is_readable():
            self._reader.call()
            self._plan_reader()

    def _plan_writer(self) -> None:
        if self._writer is not None and not self._writer_planned and (self._space() > 0 or self.error is not None):
            self._writer_planned = True
            self.network.loop.call_soon(self._write, context=self._writer.context)

    def _write(self) -> None:
        self._writer_planned = False
        if self._writer is not None:
            self._writer.call()
            self._plan_writer()


class Listener:
    """A port on which a process listens, and the connections that it has not accepted yet."""

    def __init__(self, network: Network, machine: Machine, port: int) -> None:
        self.network = network
        self.machine = machine
        self.port = port
        self.process = PROCESS.get()
        self._waiting: deque[End] = deque()
        self._reader: Handle | None = None
        self._planned = False

    def arrived(self, end: End) -> None:
        self._waiting.append(end)
        self._plan()

    def accept(self) -> End:
        if not self._waiting:
            raise BlockingIOError
        return self._waiting.popleft()

    def set_reader(self, handle: Handle | None) -> bool:
        before, self._reader = self._reader, handle
        self._plan()
        return before is not None

    def _plan(self) -> None:
        if self._reader is not None and self._waiting and not self._planned:
            self._planned = True
            self.network.loop.call_soon(self._knock, context=self._reader.context)

    def _knock(self) -> None:
        self._planned = False
        if self._reader is not None and self._waiting:
            self._reader.call()
            self._plan()

    def close(self) -> None:
        if self.machine.listeners.get(self.port) is self:
            del self.machine.listeners[self.port]
        self._reader = None
        while self._waiting:
            self._waiting.popleft().abort()
