"""What a check is, and what can come of it."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from initiator_sim.conformance.bench import Bench

LIMIT_S: Final = 20.0


class Verdict(Enum):
    """How a check ended."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_APPLICABLE = "not applicable"


class Failed(Exception):
    """The target broke the rule. `seen`: what it did; `wanted`: what the check's section asks for ("" = its title)."""

    def __init__(self, seen: str, wanted: str = "") -> None:
        super().__init__(seen)
        self.seen = seen
        self.wanted = wanted


class NotApplicable(Exception):
    """The rule cannot be looked at here; the text says why."""


def expect(condition: object, seen: str, wanted: str = "") -> None:
    """Raise Failed unless the condition holds."""
    if not condition:
        raise Failed(seen, wanted)


@dataclass(frozen=True, slots=True)
class Check:
    """One rule, and how to look at it.

    section   where it stands, such as "RFC 7143 4.2.2.1"; a "(practice)" behind it: stricter than the text, because
              initiators in use need it
    run       raises Failed or NotApplicable; may return what it saw, in a few words
    writes    uses the scratch blocks, whose contents are put back afterwards
    limit_s   a check that has not ended by then has failed
    """

    name: str
    section: str
    title: str
    run: "Callable[[Bench], Awaitable[str | None]]"
    writes: bool = False
    limit_s: float = LIMIT_S


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a check. seen: what the target did, or why the check is not applicable; wanted: where it failed.

    reached: False where there was no connection to the target.
    """

    check: Check
    verdict: Verdict
    seen: str = ""
    wanted: str = ""
    seconds: float = 0.0
    reached: bool = True

    def as_json(self) -> dict[str, object]:
        return {
            "name": self.check.name,
            "section": self.check.section,
            "title": self.check.title,
            "verdict": self.verdict.value,
            "seen": self.seen,
            "wanted": self.wanted,
            "seconds": round(self.seconds, 3),
        }
