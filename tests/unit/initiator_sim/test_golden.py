"""The simulator's PDUs beside those that open-iscsi, libiscsi and QEMU sent to another target.

Both sides of this project share one set of PDU declarations: what somebody else's initiator says, byte for byte,
guards against reading the standard wrongly on both sides at once.
"""

from __future__ import annotations

import asyncio
from pathlib import Path as File
from typing import Any

import pytest

from initiator_sim.login import LoggedIn, Login, LoginRequest
from initiator_sim.nexus import Nexus
from initiator_sim.parameters import Parameters
from initiator_sim.path import Path
from initiator_sim.personalities import LIBISCSI, OPEN_ISCSI, Personality
from initiator_sim.reactor import Reactor
from initiator_sim.session import Session
from initiator_sim.task import Task
from san_target.wire import opcodes, pdus
from san_target.wire.framer import Pdu
from san_target.wire.text import decode_pairs
from tests.unit.initiator_sim.pdu_stream import Recording
from tests.unit.wire.golden_files import GOLDEN, Recorded, conversations, read


def recorded(name: str) -> list[Recorded]:
    return list(read(GOLDEN / name))


def first(pdus_recorded: list[Recorded], opcode: int) -> Recorded:
    return next(one for one in pdus_recorded if one.bhs[0] & opcodes.OPCODE_MASK == opcode)


def fields_of(bhs: bytes) -> dict[str, Any]:
    return {key: value for key, value in pdus.parse(bhs).items() if not key.startswith("_")}


def login_of(personality: Personality, theirs: Recorded, iqn: str | None) -> bytes:
    """The first PDU of a path that logs in as a recorded initiator did."""
    header, keys = fields_of(theirs.bhs), dict(decode_pairs(theirs.data))
    nexus = Nexus("127.0.0.1:3260", iqn, keys["InitiatorName"], bytes(header["isid"]))

    async def scenario() -> bytes:
        request = Path(Reactor(), personality, nexus).login_request()
        request.cmd_sn = header["cmd_sn"]
        if request.alias:
            request.alias = keys["InitiatorAlias"]
        login = Login(request)
        login.begin()
        return b"".join(login.outgoing)

    return asyncio.run(scenario())


@pytest.mark.parametrize(
    ("name", "personality"),
    [
        ("libiscsi_inquiry.txt", LIBISCSI),
        ("libiscsi_discovery.txt", LIBISCSI),
        ("qemu_img_info.txt", LIBISCSI),
        ("open_iscsi_write_read.txt", OPEN_ISCSI),
        ("open_iscsi_discovery.txt", OPEN_ISCSI),
    ],
)
def test_a_personality_logs_in_like_its_model(name: str, personality: Personality) -> None:
    theirs = first(recorded(name), opcodes.LOGIN_REQUEST)
    keys = decode_pairs(theirs.data)
    ours = login_of(personality, theirs, dict(keys).get("TargetName"))
    ours_header = fields_of(ours[:48])
    assert list(decode_pairs(ours[48 : 48 + ours_header["data_segment_length"]])) == list(keys)
    # The tag and the meaningless ExpStatSN are each initiator's own choice.
    own = ("initiator_task_tag", "exp_stat_sn")
    assert {key: value for key, value in ours_header.items() if key not in own} == {
        key: value for key, value in fields_of(theirs.bhs).items() if key not in own
    }


@pytest.mark.parametrize(
    ("name", "personality"), [("libiscsi_inquiry.txt", LIBISCSI), ("open_iscsi_write_read.txt", OPEN_ISCSI)]
)
def test_an_isid_has_the_format_of_its_model(name: str, personality: Personality) -> None:
    theirs = bytes(fields_of(first(recorded(name), opcodes.LOGIN_REQUEST).bhs)["isid"])
    ours = personality.isid(lambda count: bytes(range(count)))
    assert len(ours) == len(theirs)
    assert ours.startswith(personality.isid_prefix)
    assert theirs.startswith(personality.isid_prefix)


def test_a_recorded_login_logs_our_session_in() -> None:
    conversation = recorded("libiscsi_inquiry.txt")
    theirs, answer = first(conversation, opcodes.LOGIN_REQUEST), first(conversation, opcodes.LOGIN_RESPONSE)
    header = fields_of(theirs.bhs)
    keys = dict(decode_pairs(theirs.data))
    request = LoginRequest(
        keys["InitiatorName"],
        bytes(header["isid"]),
        keys["TargetName"],
        [pair for pair in LIBISCSI.keys if pair[0] in keys],
        security_first=False,
        cmd_sn=header["cmd_sn"],
    )
    login = Login(request)
    login.begin()
    with_our_tag = answer.bhs[:16] + bytes(4) + answer.bhs[20:]
    login.receive(with_our_tag, answer.data)
    assert isinstance(login.result, LoggedIn)
    assert login.result.cmd_sn == header["cmd_sn"]
    assert login.result.parameters.others["TargetPortalGroupTag"] == "1"


def commands(conversation: list[Recorded]) -> list[Recorded]:
    return [one for one in conversation if one.from_initiator and one.bhs[0] & 0x3F == opcodes.SCSI_COMMAND]


@pytest.mark.parametrize("path", conversations(), ids=lambda path: path.stem)
def test_a_command_has_the_same_bytes(path: File) -> None:
    """Every recorded command, sent again by our session: the same 48 bytes, and the same immediate data."""
    for theirs in commands(list(read(path))):
        header = pdus.parse(theirs.bhs)
        length = header.expected_data_transfer_length
        immediate = len(theirs.data)
        login = LoggedIn(
            Parameters(
                initial_r2t=bool(header.final),
                immediate_data=immediate > 0,
                first_burst_length=max(immediate, 512) if header.final else 1 << 16,
                max_send_data_segment_length=max(immediate, 512),
                max_burst_length=1 << 18,
            ),
            tsih=1,
            cmd_sn=header.cmd_sn,
            exp_stat_sn=header.exp_stat_sn,
            exp_cmd_sn=header.cmd_sn,
            max_cmd_sn=header.cmd_sn + 8,
        )
        session = Session(login, Recording())
        task = Task(
            bytes(header.cdb),
            lambda task: None,
            lun=int.from_bytes(header.lun, "big"),
            read_bytes=length if header.read else 0,
            write_data=theirs.data.ljust(length, b"\0") if header.write else None,
            attribute=header.attribute,
        )
        session._next_itt = header.initiator_task_tag
        session.submit(task)
        assert bytes(session.outgoing[0]) == theirs.bhs
        if immediate:
            assert bytes(session.outgoing[1]) == theirs.data


@pytest.mark.parametrize(
    "path", [path for path in conversations() if "chap" not in path.stem], ids=lambda path: path.stem
)
def test_recorded_answers_are_accepted(path: File) -> None:
    """tgt's answers to libiscsi, given to our session with the same commands under way: no complaint, all end."""
    conversation = list(read(path))
    done: list[Task] = []
    session: Session | None = None
    for one in conversation:
        opcode = one.bhs[0] & opcodes.OPCODE_MASK
        header = pdus.parse(one.bhs)
        if opcode == opcodes.LOGIN_RESPONSE and header.transit and header.next_stage == 3:
            numbers = (header.exp_cmd_sn, header.stat_sn + 1 & 0xFFFFFFFF, header.exp_cmd_sn, header.max_cmd_sn)
            session = Session(LoggedIn(Parameters(max_burst_length=1 << 24), 1, *numbers), Recording())
        elif session is None:
            continue
        elif one.from_initiator and opcode == opcodes.SCSI_COMMAND:
            session._next_itt = header.initiator_task_tag
            length = header.expected_data_transfer_length
            session.submit(
                Task(
                    bytes(header.cdb),
                    done.append,
                    lun=int.from_bytes(header.lun, "big"),
                    read_bytes=length if header.read else 0,
                    write_data=bytes(length) if header.write else None,
                )
            )
        elif one.from_initiator and opcode != opcodes.DATA_OUT:
            session._requests[header.initiator_task_tag] = (opcode, lambda header, data: None)
        elif not one.from_initiator:
            session.receive(iter([Pdu(one.bhs, b"", memoryview(one.data), True)]))
    assert session is not None
    ended = len(done) + len(session.tasks)
    assert ended == len(commands(conversation))
