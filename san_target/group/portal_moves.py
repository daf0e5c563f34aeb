"""Sessions on their way from one member to another, as portals know of them. Pure; time is an argument.

An initiator that was asked to go comes back to the portal that it was configured with, whichever member that is; so
every member knows for a while where it is expected. The one that expects it has given a ticket for that
(`portal_group`), and serves it: no loop of redirections can come of this.
"""

from dataclasses import dataclass
from typing import Final

from san_target.group.portal_group import Login, is_same_port

EXPECTED_S: Final = 9.0
"""How long: less than the ticket is good for."""
EXPECTED_MAX: Final = 1024


@dataclass(frozen=True, slots=True)
class _Expected:
    isid: bytes
    member: str
    until_s: float


class Expected:
    """Which member expects which login; bounded, the oldest is forgotten first."""

    def __init__(self) -> None:
        self._expected: dict[tuple[str, str], _Expected] = {}

    def note(self, login: Login, member: str, until_s: float) -> None:
        key = login.target, login.initiator_name
        self._expected.pop(key, None)
        self._expected[key] = _Expected(login.isid, member, until_s)
        if len(self._expected) > EXPECTED_MAX:
            del self._expected[next(iter(self._expected))]

    def forget(self, login: Login) -> None:
        self._expected.pop((login.target, login.initiator_name), None)

    def member_for(self, login: Login, now_s: float) -> str:
        """Where this login is expected, or ""."""
        key = login.target, login.initiator_name
        found = self._expected.get(key)
        if found is None:
            return ""
        if found.until_s <= now_s:
            del self._expected[key]
            return ""
        return found.member if is_same_port(found.isid, login.isid) else ""
