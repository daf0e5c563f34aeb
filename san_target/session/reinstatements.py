"""Two machines with one initiator port: a cloned disk has the same initiator name, and with it the same ISID.

Each login of one ends the session of the other (RFC 7143 6.3.5), which logs in again at once and ends the first one's,
for ever: both hosts see a disk that keeps failing. The target must obey, but it can say what goes on. A host that only
changes its address is not meant: somebody has to come back.
"""

from dataclasses import dataclass, field
from typing import Final

WINDOW_S: Final = 60.0
REINSTATEMENTS_MIN: Final = 3
REMEMBERED_S: Final = 300.0
"""How long a quarrel is reported after its last reinstatement."""
PORTS_MAX: Final = 4096
_KEPT_MAX: Final = 16


@dataclass(frozen=True, slots=True)
class Quarrel:
    """An initiator port that several machines use on one target. hosts: where they log in from, sorted."""

    target: str
    initiator_name: str
    isid: bytes
    hosts: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"{self.initiator_name} (ISID {self.isid.hex()}) logs in from {' and '.join(self.hosts)} in turn, each "
            "time ending the other's session: they are clones; give each machine its own initiator name"
        )


@dataclass(slots=True)
class _Port:
    # (when, from which host the session was taken, by which)
    changes: list[tuple[float, str, str]] = field(default_factory=list)
    quarrel: Quarrel | None = None


class Reinstatements:
    """Live sessions that were ended by another login of their initiator port; bounded. count: all of them."""

    def __init__(self) -> None:
        self.count = 0
        self._ports: dict[tuple[str, str, bytes], _Port] = {}  # the one that changed last stands last

    def note(
        self, target: str, initiator_name: str, isid: bytes, old_address: str, new_address: str, now_s: float
    ) -> Quarrel | None:
        """Addresses are "host:port". Returns the quarrel where this shows that there is one that was not known."""
        self.count += 1
        old_host, new_host = old_address.rpartition(":")[0], new_address.rpartition(":")[0]
        if old_host == new_host:
            return None  # the usual case: a host logs in again before its old connection was seen to be gone
        key = (target, initiator_name, isid)
        port = self._ports.pop(key, None) or _Port()
        self._ports[key] = port
        if len(self._ports) > PORTS_MAX:
            del self._ports[next(iter(self._ports))]
        if port.changes and now_s - port.changes[-1][0] > REMEMBERED_S:
            port.quarrel = None
        recent = [change for change in port.changes if now_s - change[0] <= WINDOW_S]
        port.changes = [*recent, (now_s, old_host, new_host)][-_KEPT_MAX:]
        hosts = {host for _, *both in port.changes for host in both}
        # A host that only moves on from address to address leaves one more of them behind than it made changes.
        if len(port.changes) < REINSTATEMENTS_MIN or len(hosts) > len(port.changes):
            return None
        known, port.quarrel = port.quarrel, Quarrel(*key, tuple(sorted(hosts)))
        return port.quarrel if known is None else None

    def quarrel_of(self, target: str, initiator_name: str, isid: bytes, now_s: float) -> Quarrel | None:
        """That of one initiator port."""
        port = self._ports.get((target, initiator_name, isid))
        return None if port is None or not _is_told(port, now_s) else port.quarrel

    def quarrels(self, now_s: float) -> list[Quarrel]:
        """Those under way, or ended not long ago."""
        return [port.quarrel for port in self._ports.values() if port.quarrel is not None and _is_told(port, now_s)]


def _is_told(port: _Port, now_s: float) -> bool:
    return now_s - port.changes[-1][0] <= REMEMBERED_S
