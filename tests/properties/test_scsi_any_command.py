"""Any CDB with any data, on any kind of volume, ends in a documented way, and the two ways to run it agree.

The memory device checks each call (range, whole blocks), so a handler that lets something wrong through fails here.
"""

from hypothesis import example, given, settings
from hypothesis import strategies as st

from san_target.scsi.absent_unit import execute_without_unit
from san_target.scsi.command import CHECK_CONDITION, CONDITION_MET, GOOD, RESERVATION_CONFLICT, Command
from san_target.scsi.table import OPERATIONS
from tests.unit.scsi.kit import Rig, parse_sense

KEYS = {
    0x2,
    0x5,
    0x6,
    0x7,
    0xA,
    0xE,
}  # not ready, illegal request, unit attention, data protect, copy aborted, miscompare
# SANITIZE and EXTENDED COPY may wait for time to pass; they have properties of their own.
WAITING = {0x48, 0x83, 0x84, 0x5F}
KNOWN = sorted((opcode, action or 0) for opcode, action in OPERATIONS if opcode not in WAITING)

small = st.one_of(st.just(b"\0\0\0\0\0\0\0\0"), st.integers(0, 70).map(lambda value: value.to_bytes(8, "big")))


@st.composite
def cdbs(draw: st.DrawFn) -> bytes:
    """Mostly known commands with fields that are near something interesting; sometimes anything."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(min_size=16, max_size=16).filter(lambda cdb: cdb[0] not in WAITING))
    opcode, action = draw(st.sampled_from(KNOWN))
    cdb = bytearray(16)
    cdb[0] = opcode
    cdb[1] = action or draw(st.sampled_from([0, 0, 0, 0x01, 0x02, 0x06, 0x08, 0x10, 0x11, 0x18, 0x20, 0xFF]))
    width = {0: 3, 1: 4, 2: 4, 5: 4, 4: 8}[opcode >> 5]
    start = 2 if width > 3 else 1
    if draw(st.booleans()):
        cdb[2 : 2 + 8] = draw(small)[8 - 8 :]
    else:
        lba = draw(st.one_of(st.integers(0, 70), st.integers(0, 256**width - 1)))
        cdb[start : start + width] = (lba % 256**width).to_bytes(width, "big")
    for _ in range(draw(st.integers(0, 3))):
        cdb[draw(st.integers(1, 15))] = draw(st.one_of(st.integers(0, 40), st.integers(0, 255)))
    return bytes(cdb)


def settle(rig: Rig) -> tuple[object, ...]:
    return (dict(rig.device.written), rig.unit.parameters, rig.unit.stopped, rig.unit.ejected, len(rig.unit.preventing))


@settings(max_examples=400)
@given(
    cdb=cdbs(),
    data=st.one_of(st.binary(max_size=64), st.integers(0, 20).map(lambda blocks: b"d" * (256 * blocks))),
    read_only=st.booleans(),
    removable=st.booleans(),
    block_size=st.sampled_from([512, 4096]),
    atomic=st.sampled_from([0, 16]),
)
@example(cdb=bytes(16), data=b"", read_only=False, removable=False, block_size=512, atomic=0)
def test_any_command(cdb: bytes, data: bytes, read_only: bool, removable: bool, block_size: int, atomic: int) -> None:
    ends = []
    for at_once in (True, False):
        rig = Rig(64, block_size, atomic, read_only=read_only, removable=removable)
        rig.device.at_once = at_once
        before = dict(rig.device.written)
        wanted = rig.unit.data_out_length(cdb)
        assert 0 <= wanted <= max(8 << 20, 0xFFFF)
        outcome = rig.send(cdb, data)
        rig.run_spawned()
        assert outcome.status in (GOOD, CHECK_CONDITION, CONDITION_MET, RESERVATION_CONFLICT)
        if outcome.status == CHECK_CONDITION:
            assert parse_sense(outcome.sense).key in KEYS
            assert len(memoryview(outcome.data_in)) == 0
            if cdb[0] not in (0x2E, 0xAE, 0x8E):  # a verify that fails comes after its write
                assert rig.device.written == before
        else:
            assert outcome.sense == b""
        if read_only:
            assert rig.device.written == before
        ends.append((outcome.status, bytes(outcome.data_in), outcome.sense, settle(rig)))
    assert ends[0] == ends[1]


@given(cdb=st.binary(min_size=16, max_size=16))
def test_any_command_to_an_absent_unit(cdb: bytes) -> None:
    rig = Rig()
    outcome = execute_without_unit(Command(rig.nexus, cdb, lun=3), ["iqn.2026-01.io.san-target:kit"])
    assert outcome.status in (GOOD, CHECK_CONDITION)
    if outcome.status == CHECK_CONDITION:
        assert parse_sense(outcome.sense)[:3] in ((0x5, 0x25, 0x00), (0x5, 0x24, 0x00))
