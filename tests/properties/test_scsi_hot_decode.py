"""The quick decoder of READ and WRITE says the same as the slow one, or leaves the CDB to it."""

from hypothesis import given
from hypothesis import strategies as st

from san_target.scsi.blocks import decode
from san_target.scsi.hot import decode_read_write

HOT = {0x28: (False, 9), 0x2A: (True, 9), 0xA8: (False, 11), 0xAA: (True, 11), 0x88: (False, 15), 0x8A: (True, 15)}


@given(cdb=st.binary(min_size=16, max_size=16), opcode=st.sampled_from(sorted(HOT)))
def test_hot_opcodes(cdb: bytes, opcode: int) -> None:
    cdb = bytes([opcode]) + cdb[1:]
    is_write, control = HOT[opcode]
    found = decode_read_write(cdb)
    if cdb[1] & 0xE0 or cdb[control] & 0x04:
        assert found is None
    elif found is None:
        assert cdb[1] & 0x04  # a reserved bit: the slow way may say what it likes
    else:
        slow = decode(cdb)
        assert found == (slow.lba, slow.blocks, is_write, bool(cdb[1] & 0x08))


@given(cdb=st.binary(min_size=16, max_size=16))
def test_other_opcodes_are_left_alone(cdb: bytes) -> None:
    if cdb[0] not in HOT:
        assert decode_read_write(cdb) is None
