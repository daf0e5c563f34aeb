"""The table of the kinds of cases, and how a case comes from a seed and a number."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Final

from initiator_sim.fuzz import crowds, framing, logins, sessions
from initiator_sim.fuzz.craft import Ground
from initiator_sim.fuzz.guard import Guard
from initiator_sim.fuzz.script import Case, Script, image

_TRIES: Final = 200


@dataclass(frozen=True, slots=True)
class Kind:
    """weight: how often, against the others. needs_target: makes no sense in a discovery session."""

    name: str
    make: Callable[[Random, Ground], Script]
    weight: float = 4
    needs_target: bool = False

    @property
    def about(self) -> str:
        """What its cases do, in a sentence."""
        return (self.make.__doc__ or "").partition("\n\n")[0].strip()


KINDS: Final = (
    Kind("lengths", framing.lengths, 8),
    Kind("opcodes", framing.unknown_opcodes),
    Kind("operation codes", framing.operation_codes, 6, needs_target=True),
    Kind("digests", framing.wrong_digests),
    Kind("additional headers", framing.huge_additional_headers),
    Kind("any field", framing.any_field, 8),
    Kind("reserved bits", framing.reserved_bits, 2),
    Kind("junk bytes", framing.junk_bytes),
    Kind("mutated conversation", framing.mutated_conversation, 12),
    Kind("half-open logins", logins.half_open, 2),
    Kind("slow senders", logins.slow_senders, 1),
    Kind("login keys", logins.login_keys, 8),
    Kind("login order", logins.login_order, 6),
    Kind("authentication", logins.authentication, 3),
    Kind("endless login", logins.endless_login, 1),
    Kind("order", sessions.order),
    Kind("CmdSN", sessions.command_numbers, 6),
    Kind("task tags", sessions.task_tags),
    Kind("task management", sessions.task_management, needs_target=True),
    Kind("unsolicited data", sessions.unsolicited_data, 8, needs_target=True),
    Kind("text", sessions.text),
    Kind("text flood", sessions.text_flood, 1),
    Kind("ping flood", sessions.ping_flood, 1),
    Kind("no answers taken", sessions.deaf, 1),
    Kind("connection storm", crowds.connection_storm, 1),
    Kind("login storm", crowds.login_storm, 1),
    Kind("reinstatements", crowds.reinstatements, 1),
    Kind("cut off", crowds.cut_off, 2),
)


def kind_of(seed: int, number: int, ground: Ground) -> Kind:
    """The kind of a case."""
    usable = [kind for kind in KINDS if ground.iqn is not None or not kind.needs_target]
    return Random(f"{seed}/{number}/kind").choices(usable, [each.weight for each in usable])[0]


def make_case(seed: int, number: int, ground: Ground) -> Case:
    """The same for the same arguments, always. Nothing in it could change a volume, unless the ground allows it."""
    kind = kind_of(seed, number, ground)
    random = Random(f"{seed}/{number}")
    for _ in range(_TRIES):
        script = kind.make(random, ground)
        guard = Guard(ground.destructive)
        if all(guard.admits(part) for part in image(script)):
            return Case(number, kind.name, script)
    raise RuntimeError(f"seed {seed}, case {number}: {kind.name} makes nothing harmless")
