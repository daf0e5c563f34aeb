"""`may_read` and `may_write`: True only while nothing stands between the nexus and the medium, whatever happened.

A model asks the slow way: a flag may be True only if a command of that kind ends GOOD, and must be True if it does and
needs no durable write. Random histories of everything that changes a state are run against it.
"""

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from san_target.scsi.command import GOOD
from san_target.scsi.nexus import Nexus
from tests.unit.scsi.kit import Rig, cdb_10
from tests.unit.scsi.test_order_of_judgement import Progress

READ, WRITE = cdb_10(0x28, 0, 1), cdb_10(0x2A, 0, 1)


def mode_select(byte: int, mask: int, page: int) -> Callable[[Rig, Nexus], None]:
    def toggle(rig: Rig, nexus: Nexus) -> None:
        data = bytearray(bytes(rig.send(bytes([0x1A, 8, page, 0, 255, 0]), nexus=nexus).data_in)[4:])
        if data:
            data[byte] ^= mask
            rig.send(bytes([0x15, 0x10, 0, 0, 4 + len(data), 0]), bytes(4) + bytes(data), nexus=nexus)

    return toggle


def persistent(action: int, kind: int, key: int, new_key: int) -> Callable[[Rig, Nexus], None]:
    cdb = bytes([0x5F, action, kind, 0, 0, 0, 0, 0, 24, 0])
    data = key.to_bytes(8, "big") + new_key.to_bytes(8, "big") + bytes(8)
    return lambda rig, nexus: void(rig.send(cdb, data, nexus=nexus))


def command(cdb: str) -> Callable[[Rig, Nexus], None]:
    return lambda rig, nexus: void(rig.send(cdb, nexus=nexus))


def void(_: object) -> None:
    return None


def sanitize(state: Progress | None) -> Callable[[Rig, Nexus], None]:
    def change(rig: Rig, nexus: Nexus) -> None:
        rig.unit.sanitizing = state
        rig.unit.refresh_all()

    return change


def reattach(rig: Rig, nexus: Nexus) -> None:
    rig.unit.detach(nexus)
    nexus.fenced = False
    rig.unit.attach(nexus)


EVENTS: dict[str, Callable[[Rig, Nexus], None]] = {
    "test unit ready": command("00"),
    "request sense": command("03 00 00 00 ff"),
    "reserve": command("16"),
    "release": command("17"),
    "stop": command("1b 00 00 00 00"),
    "start": command("1b 00 00 00 01"),
    "eject": command("1b 00 00 00 02"),
    "load": command("1b 00 00 00 03"),
    "toggle SWP": mode_select(4, 0x08, 0x0A),
    "toggle WCE": mode_select(2, 0x04, 0x08),
    "register": persistent(6, 0, 0, 1),
    "unregister": persistent(6, 0, 0, 0),
    "reserve write exclusive": persistent(1, 1, 1, 0),
    "reserve exclusive access": persistent(1, 3, 1, 0),
    "reserve exclusive, registrants": persistent(1, 6, 1, 0),
    "release it": persistent(2, 1, 1, 0),
    "clear": persistent(3, 0, 1, 0),
    "reset": lambda rig, nexus: rig.unit.reset(),
    "nexus loss": lambda rig, nexus: rig.unit.nexus_lost(nexus),
    "capacity": lambda rig, nexus: rig.unit.capacity_changed(),
    "cleared": lambda rig, nexus: rig.unit.commands_cleared([nexus]),
    "sanitize": sanitize(Progress()),
    "sanitized": sanitize(None),
    "reattach": reattach,
}


def would_be_good(rig: Rig, nexus: Nexus, cdb: bytes) -> bool:
    """Whether the slow way lets the command through; nothing is changed by asking."""
    attentions = list(nexus.attentions)
    outcome = rig.send(cdb, b"a" * 512, nexus=nexus)
    nexus.attentions.clear()
    nexus.attentions.extend(attentions)
    rig.unit.refresh(nexus)
    return outcome.status == GOOD


def check(rig: Rig, nexus: Nexus) -> None:
    may_read, may_write = nexus.may_read, nexus.may_write
    assert may_read == would_be_good(rig, nexus, READ)
    assert may_write == (would_be_good(rig, nexus, WRITE) and rig.unit.parameters.write_cache_enabled)
    assert (nexus.may_read, nexus.may_write) == (may_read, may_write)
    assert nexus.d_sense == rig.unit.parameters.descriptor_sense


@given(
    history=st.lists(st.tuples(st.sampled_from(sorted(EVENTS)), st.integers(0, 1)), max_size=25),
    read_only=st.booleans(),
    removable=st.booleans(),
    write_through=st.booleans(),
)
def test_flags_tell_what_the_slow_way_would_do(
    history: list[tuple[str, int]], read_only: bool, removable: bool, write_through: bool
) -> None:
    rig = Rig(blocks=64, read_only=read_only, removable=removable, write_through=write_through)
    nexuses = [rig.nexus, rig.login("other", moved=False)]
    for name, who in history:
        EVENTS[name](rig, nexuses[who])
        rig.run_spawned()
        for nexus in nexuses:
            check(rig, nexus)
