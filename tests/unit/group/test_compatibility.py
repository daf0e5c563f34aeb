"""Which programs run side by side, and what the others are told."""

import pytest

from san_target.group.compatibility import Versions, refusal
from san_target.metadata.schema import MemberRecord

MINE = Versions("1.1", schema=3, protocol_min=2, protocol_max=4)


def other(schema: int = 3, protocol: tuple[int, int] = (2, 4)) -> MemberRecord:
    return MemberRecord(
        version=schema,
        name="two",
        incarnation=1,
        portals=(),
        admin="",
        program="1.0",
        protocol_min=protocol[0],
        protocol_max=protocol[1],
    )


@pytest.mark.parametrize("protocol", [(2, 4), (1, 2), (4, 9), (3, 3), (1, 9)])
def test_any_common_protocol_version_will_do(protocol: tuple[int, int]) -> None:
    assert refusal(MINE, [other(), other(protocol=protocol)]) == ""


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (other(schema=4), "'two' (1.0) writes records of schema version 4, this program (1.1) knows up to 3; upgrade"),
        (
            other(schema=2),
            "this program (1.1) writes records of schema version 3, which member 'two' (1.0) cannot read",
        ),
        (other(protocol=(5, 6)), "this program (1.1) is too old to talk to member 'two' (1.0); upgrade this member"),
        (other(protocol=(1, 1)), "member 'two' (1.0) is too old to talk to this program (1.1); upgrade that member"),
    ],
)
def test_what_does_not_fit_is_named(record: MemberRecord, words: str) -> None:
    assert words in refusal(MINE, [other(), record])
    assert refusal(MINE, []) == ""


def test_this_program_fits_itself() -> None:
    mine = Versions()
    record = MemberRecord(
        name="x",
        incarnation=1,
        portals=(),
        admin="",
        program=mine.program,
        protocol_min=mine.protocol_min,
        protocol_max=mine.protocol_max,
    )
    assert refusal(mine, [record]) == ""
