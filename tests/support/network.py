"""A network of this machine's own: a bridge, and behind it a network namespace with an address for each member.

The host reaches all of them over the bridge. A cut drops what one member sends to another, without a word to either:
neighbour entries are made to point to a network card that does not exist. Nobody else's traffic is touched, and no
packet filter is needed. Only root can do this.
"""

from __future__ import annotations

import itertools
import os
import string
import subprocess
from collections.abc import Iterable
from types import TracebackType

import pytest

from tests.support.tools import find

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make network namespaces")
NOBODY = "02:00:00:00:00:01"
_letters = itertools.cycle(string.ascii_lowercase)


class Network:
    """`count` namespaces with one address each, from entering to leaving."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._name = f"st{os.getpid()}{next(_letters)}"  # an interface's name has 15 characters at most
        self._bridge = f"{self._name}b"
        # 198.18.0.0/15 is for measurements in networks of one's own (RFC 2544): nobody else is reached by it.
        self._subnet = f"198.18.{os.getpid() % 256}"

    def __enter__(self) -> Network:
        try:
            self._set_up()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _set_up(self) -> None:
        _ip("link", "add", self._bridge, "type", "bridge", "stp_state", "0", "forward_delay", "0")
        _ip("addr", "add", f"{self._subnet}.254/24", "dev", self._bridge)
        _ip("link", "set", self._bridge, "up")
        for index in range(self._count):
            name, cable = self._namespace(index), self._cable(index)
            _ip("netns", "add", name)
            _ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", name)
            _ip("link", "set", cable, "master", self._bridge, "up")
            _ip("-n", name, "addr", "add", f"{self.address(index)}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "lo", "up")
            _ip("-n", name, "link", "set", "eth0", "up")

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A namespace goes when its last process and socket have gone; its cable is not to wait for that.
        for index in range(self._count):
            _try_ip("link", "del", self._cable(index))
            _try_ip("netns", "del", self._namespace(index))
        _try_ip("link", "del", self._bridge)

    def _namespace(self, index: int) -> str:
        return f"{self._name}n{index}"

    def _cable(self, index: int) -> str:
        return f"{self._name}v{index}"

    def address(self, index: int) -> str:
        return f"{self._subnet}.{index + 1}"

    def prefix(self, index: int) -> list[str]:
        """What to put before a command that is to run there. It is replaced by the command: its pid is that one's."""
        return [find("ip"), "netns", "exec", self._namespace(index)]

    def cut(self, one: int, others: Iterable[int], both_ways: bool = True) -> None:
        """From now on nothing that `one` sends reaches the others, and (both_ways) nothing of them reaches it."""
        for other in others:
            self._cut_way(one, other)
            if both_ways:
                self._cut_way(other, one)

    def _cut_way(self, source: int, destination: int) -> None:
        words = ["neigh", "replace", self.address(destination), "lladdr", NOBODY, "dev", "eth0", "nud", "permanent"]
        _ip("-n", self._namespace(source), *words)

    def pull(self, index: int) -> None:
        """The cable of this one: nobody reaches it any more, nor it anybody."""
        _ip("link", "set", self._cable(index), "down")

    def heal(self) -> None:
        """All cables are whole again, and in their places."""
        for index in range(self._count):
            _ip("link", "set", self._cable(index), "up")
            _ip("-n", self._namespace(index), "neigh", "flush", "dev", "eth0", "nud", "permanent")


def _try_ip(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([find("ip"), *words], capture_output=True, text=True, timeout=30, check=False)


def _ip(*words: str) -> None:
    done = _try_ip(*words)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"
