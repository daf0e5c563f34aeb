"""PERSISTENT RESERVE IN and OUT as bytes: parameter data, TransportIDs, and lists that are wrong."""

import asyncio
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from san_target.scsi import transport_id
from san_target.scsi.command import GOOD
from san_target.scsi.logical_unit import LogicalUnit
from san_target.scsi.nexus import Nexus
from san_target.scsi.sense import INVALID_FIELD_IN_PARAMETER_LIST, CheckCondition
from tests.unit.scsi.state_support import (
    HOST_A,
    HOST_B,
    Surroundings,
    login,
    make_unit,
    reserve_out,
    reserve_out_cdb,
    reserve_out_data,
    run,
    sense_of,
)

REGISTER, RESERVE, REGISTER_AND_IGNORE, REGISTER_AND_MOVE = 0, 1, 6, 7
SPEC_I_PT = 0x08
PORT_B = f"{HOST_B},i,0x000000000001"


def reserve_in_cdb(action: int, allocation_length: int = 0xFFFF) -> bytes:
    return struct.pack(">BB5xHx", 0x5E, action, allocation_length)


async def reserve_in(unit: LogicalUnit, nexus: Nexus, action: int, allocation_length: int = 0xFFFF) -> bytes:
    outcome = await run(unit, nexus, reserve_in_cdb(action, allocation_length))
    assert outcome.status == GOOD
    return bytes(outcome.data_in)


def test_read_keys() -> None:
    async def scenario() -> None:
        unit = make_unit(Surroundings())
        first, second = login(unit, HOST_A), login(unit, HOST_B)
        assert await reserve_in(unit, first, 0) == bytes(8)
        await reserve_out(unit, first, REGISTER, action_key=0x1122334455667788)
        await reserve_out(unit, second, REGISTER, action_key=2)
        data = await reserve_in(unit, first, 0)
        assert data == bytes.fromhex("00000002 00000010 1122334455667788 0000000000000002")
        assert await reserve_in(unit, first, 0, allocation_length=8) == data[:8]

    asyncio.run(scenario())


@pytest.mark.parametrize("kind", [1, 3, 5, 6, 7, 8])
def test_read_reservation(kind: int) -> None:
    async def scenario() -> None:
        unit = make_unit(Surroundings())
        nexus = login(unit, HOST_A)
        await reserve_out(unit, nexus, REGISTER, action_key=7)
        assert await reserve_in(unit, nexus, 1) == bytes.fromhex("00000001 00000000")
        await reserve_out(unit, nexus, RESERVE, key=7, kind=kind)
        key = 0 if kind in (7, 8) else 7
        expected = struct.pack(">IIQIBBH", 1, 16, key, 0, 0, kind, 0)
        assert await reserve_in(unit, nexus, 1) == expected

    asyncio.run(scenario())


@pytest.mark.parametrize("aptpl", [0, 1])
def test_report_capabilities(aptpl: int) -> None:
    async def scenario() -> None:
        unit = make_unit(Surroundings())
        nexus = login(unit, HOST_A)
        await reserve_out(unit, nexus, REGISTER, action_key=7, flags=aptpl)
        data = await reserve_in(unit, nexus, 2)
        assert data == bytes([0, 8, 0x1D, 0x80 | aptpl, 0xEA, 0x01, 0, 0])

    asyncio.run(scenario())


def test_read_full_status() -> None:
    async def scenario() -> None:
        unit = make_unit(Surroundings())
        first, second = login(unit, HOST_A), login(unit, HOST_B)
        await reserve_out(unit, first, REGISTER, action_key=1)
        await reserve_out(unit, second, REGISTER, action_key=2)
        await reserve_out(unit, first, RESERVE, key=1, kind=5)
        data = await reserve_in(unit, first, 3)
        generation, length = struct.unpack_from(">II", data)
        assert (generation, length) == (2, len(data) - 8)
        found = []
        at = 8
        while at < len(data):
            key, holder, scope_type, relative_port, id_length = struct.unpack_from(">Q4xBB4xHI", data, at)
            name, end = transport_id.decode(data, at + 24)
            assert end == at + 24 + id_length
            found.append((key, holder, scope_type, relative_port, name.text, name.is_port))
            at = end
        assert found == [(1, 1, 5, 1, first.initiator_port, True), (2, 0, 0, 1, second.initiator_port, True)]

    asyncio.run(scenario())


def test_an_unknown_service_action_is_an_invalid_field() -> None:
    async def scenario() -> None:
        unit = make_unit(Surroundings())
        nexus = login(unit, HOST_A)
        for action in range(4, 32):
            assert sense_of(await run(unit, nexus, reserve_in_cdb(action))) == (5, 0x24, 0)
        for action in range(8, 32):
            assert sense_of(await run(unit, nexus, reserve_out_cdb(action), bytes(24))) == (5, 0x24, 0)

    asyncio.run(scenario())


@pytest.mark.parametrize("length", [0, 1, 23, 25, 28, 1 << 20])
@pytest.mark.parametrize("action", range(7))
def test_the_parameter_list_is_24_bytes(length: int, action: int) -> None:
    async def scenario() -> None:
        unit = make_unit(Surroundings())
        outcome = await run(unit, login(unit, HOST_A), reserve_out_cdb(action, 1, length=length), bytes(length))
        assert sense_of(outcome) == (5, 0x1A, 0)

    asyncio.run(scenario())


def test_less_data_than_the_cdb_says() -> None:
    async def scenario() -> None:
        unit = make_unit(Surroundings())
        outcome = await run(unit, login(unit, HOST_A), reserve_out_cdb(REGISTER), reserve_out_data(0, 1)[:20])
        assert sense_of(outcome) == (5, 0x1A, 0)

    asyncio.run(scenario())


def spec_i_pt(*ids: bytes, action_key: int = 5) -> bytes:
    listed = b"".join(ids)
    return reserve_out_data(0, action_key, SPEC_I_PT) + struct.pack(">I", len(listed)) + listed


async def register_others(unit: LogicalUnit, nexus: Nexus, data: bytes) -> tuple[int, int, int] | None:
    outcome = await run(unit, nexus, reserve_out_cdb(REGISTER, length=len(data)), data)
    return None if outcome.status == GOOD else sense_of(outcome)


def test_specify_initiator_ports() -> None:
    async def scenario() -> None:
        unit = make_unit(Surroundings())
        nexus = login(unit, HOST_A)
        assert await register_others(unit, nexus, spec_i_pt(transport_id.encode(PORT_B))) is None
        assert [port.initiator for port in unit.reservations.state.registrations] == [nexus.initiator_port, PORT_B]
        assert set(unit.reservations.state.registrations.values()) == {5}

    asyncio.run(scenario())


def device_id(name: str) -> bytes:
    text = name.encode() + b"\0"
    text = text.ljust(max(20, -(-len(text) // 4) * 4), b"\0")
    return struct.pack(">BxH", 0x05, len(text)) + text


def test_a_device_name_means_the_ports_it_has_sessions_from() -> None:
    async def scenario() -> None:
        unit = make_unit(Surroundings())
        nexus = login(unit, HOST_A)
        ports = {login(unit, HOST_B, isid).initiator_port for isid in (1, 2)}
        assert await register_others(unit, nexus, spec_i_pt(device_id(HOST_B))) is None
        assert {port.initiator for port in unit.reservations.state.registrations} == ports | {nexus.initiator_port}

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (spec_i_pt(b"\x46\0\0\x14" + b"x".ljust(20, b"\0")), (5, 0x26, 0)),
        (spec_i_pt(b"\x85\0\0\x14" + b"x".ljust(20, b"\0")), (5, 0x26, 0)),
        (spec_i_pt(b"\x45\0\0\x18" + b"a,i,0x000000000001".ljust(20, b"\0")), (5, 0x26, 0)),
        (spec_i_pt(b"\x45\0\0\x14" + b"a,i,0x00000000000g".ljust(20, b"\0")), (5, 0x26, 0)),
        (spec_i_pt(b"\x45\0\0\x14" + b"a" * 20), (5, 0x26, 0)),
        (spec_i_pt(b"\x05\0\0\x14" + b"\xff\xfe".ljust(20, b"\0")), (5, 0x26, 0)),
        (spec_i_pt(device_id("iqn.2026-01.example:nobody")), (5, 0x26, 0)),
        (spec_i_pt(device_id(HOST_A)), (5, 0x26, 0)),
        (spec_i_pt(transport_id.encode(f"{HOST_A},i,0x000000000001")), (5, 0x26, 0)),
        (spec_i_pt(transport_id.encode(PORT_B), transport_id.encode(PORT_B)), (5, 0x26, 0)),
        (spec_i_pt(b"\x45\0"), (5, 0x26, 0)),
        (spec_i_pt(transport_id.encode(PORT_B))[:-4], (5, 0x1A, 0)),
        (reserve_out_data(0, 5, SPEC_I_PT), (5, 0x1A, 0)),
        (spec_i_pt(transport_id.encode(PORT_B), action_key=0), (5, 0x24, 0)),
    ],
)
def test_wrong_lists_register_nobody(data: bytes, expected: tuple[int, int, int]) -> None:
    async def scenario() -> None:
        unit = make_unit(Surroundings())
        assert await register_others(unit, login(unit, HOST_A), data) == expected
        assert unit.reservations.state.registrations == {}

    asyncio.run(scenario())


def move_data(name: bytes, key: int = 1, action_key: int = 9, flags: int = 0, relative_port: int = 1) -> bytes:
    return struct.pack(">QQxBHI", key, action_key, flags, relative_port, len(name)) + name


def test_register_and_move() -> None:
    async def scenario() -> None:
        unit = make_unit(Surroundings())
        nexus = login(unit, HOST_A)
        await reserve_out(unit, nexus, REGISTER, action_key=1)
        await reserve_out(unit, nexus, RESERVE, key=1, kind=1)
        data = move_data(transport_id.encode(PORT_B.upper().replace("IQN", "iqn")), flags=0x03)
        assert (await run(unit, nexus, reserve_out_cdb(REGISTER_AND_MOVE, length=len(data)), data)).status == GOOD
        assert not nexus.may_write
        assert login(unit, HOST_B).may_write
        assert unit.reservations.state.aptpl

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (move_data(transport_id.encode(PORT_B), relative_port=2), (5, 0x26, 0)),
        (move_data(transport_id.encode(PORT_B)) + bytes(4), (5, 0x1A, 0)),
        (move_data(b""), (5, 0x26, 0)),
        (move_data(device_id(HOST_B)), (5, 0x26, 0)),
        (move_data(transport_id.encode(f"{HOST_A},i,0x000000000001")), (5, 0x26, 0)),
        (move_data(transport_id.encode(PORT_B), action_key=0), (5, 0x26, 0)),
    ],
)
def test_register_and_move_with_a_wrong_list(data: bytes, expected: tuple[int, int, int]) -> None:
    async def scenario() -> None:
        unit = make_unit(Surroundings())
        nexus = login(unit, HOST_A)
        await reserve_out(unit, nexus, REGISTER, action_key=1)
        await reserve_out(unit, nexus, RESERVE, key=1, kind=1)
        outcome = await run(unit, nexus, reserve_out_cdb(REGISTER_AND_MOVE, length=len(data)), data)
        assert sense_of(outcome) == expected
        assert unit.reservations.state.is_holder(next(iter(unit.reservations.state.registrations)))

    asyncio.run(scenario())


@given(st.text("abcdefghijklmnopqrstuvwxyz0123456789.:-", min_size=1, max_size=223), st.binary(min_size=6, max_size=6))
def test_transport_ids_come_back(name: str, isid: bytes) -> None:
    port = f"{name},i,0x{isid.hex()}"
    encoded = transport_id.encode(port)
    assert len(encoded) % 4 == 0
    assert len(encoded) >= 24
    assert transport_id.decode(b"??" + encoded, 2) == (transport_id.TransportId(port, True), 2 + len(encoded))


@given(st.binary(max_size=300), st.integers(0, 40))
def test_any_bytes_are_a_transport_id_or_refused(data: bytes, offset: int) -> None:
    try:
        name, end = transport_id.decode(data, offset)
    except CheckCondition as error:
        refusal = error.condition
    else:
        assert offset < end <= len(data)
        assert name.text
        return
    assert refusal == INVALID_FIELD_IN_PARAMETER_LIST
