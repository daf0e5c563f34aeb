"""Cases come from seed and number alone, none could change a volume, and every kind does what it is for."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import pytest

from initiator_sim.fuzz.craft import Ground
from initiator_sim.fuzz.guard import HARMLESS, WRITES, Guard
from initiator_sim.fuzz.kinds import KINDS, kind_of, make_case
from initiator_sim.fuzz.script import AnswerR2T, Encoder, Send, describe, image
from initiator_sim.packets import ISCSI, ISCSI_R2T, ISCSI_NopOut, digests, pdu_bytes
from san_target.wire import opcodes

DISK = Ground("iqn.2026-01.io.san-target:demo", "iqn.2026-01.org.example:host", 0, 512, 131072)
PORTAL = Ground(None, "iqn.2026-01.org.example:host")
WRITABLE = Ground(DISK.iqn, DISK.initiator_name, 0, 512, 131072, destructive=True)
CASES = 200


def fingerprint(seed: int, ground: Ground, cases: int = 40) -> str:
    total = hashlib.sha256()
    for number in range(cases):
        case = make_case(seed, number, ground)
        total.update(f"{case.kind} {case.script.begin} {case.script.ending} {case.script.connections}".encode())
        for part in image(case.script):
            total.update(len(part).to_bytes(4, "big") + part)
    return total.hexdigest()


@pytest.mark.parametrize("ground", [DISK, PORTAL, WRITABLE], ids=["disk", "portal", "writable"])
def test_the_same_seed_makes_the_same_bytes(ground: Ground) -> None:
    assert fingerprint(7, ground) == fingerprint(7, ground)
    assert fingerprint(7, ground) != fingerprint(8, ground)


def test_the_same_bytes_in_another_process() -> None:
    """Nothing depends on the order of sets and the like."""
    program = "from tests.unit.initiator_sim.fuzz.test_cases import DISK, fingerprint; print(fingerprint(7, DISK))"
    environment = os.environ | {"PYTHONHASHSEED": "12345"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True, timeout=60
    )
    assert done.stdout.strip() == fingerprint(7, DISK)


def test_a_case_does_not_depend_on_those_before_it() -> None:
    alone = [list(image(make_case(3, 40, DISK).script))]
    for number in range(40):
        make_case(3, number, DISK)
    assert [list(image(make_case(3, 40, DISK).script))] == alone


def commands_in(ground: Ground) -> set[int]:
    """The operation codes of all SCSI commands that lie at a word of what cases send."""
    found = set()
    for number in range(CASES):
        case = make_case(1, number, ground)
        guard = Guard(ground.destructive)
        stream = b""
        for part in image(case.script):
            assert guard.admits(part), f"case {number} ({case.kind})"
            stream += part
        for at in range(0, len(stream) - opcodes.BHS_BYTES, 4):
            if stream[at] & opcodes.OPCODE_MASK == opcodes.SCSI_COMMAND:
                found.add(stream[at + 32])
    return found


def test_nothing_is_written_unless_it_is_allowed() -> None:
    assert commands_in(DISK) <= HARMLESS
    written = commands_in(WRITABLE)
    assert written <= HARMLESS | WRITES
    assert 0x8A in written


@pytest.mark.parametrize("ground", [DISK, PORTAL], ids=["disk", "portal"])
def test_every_kind_has_its_share(ground: Ground) -> None:
    seen = {kind_of(1, number, ground).name for number in range(1000)}
    assert seen == {kind.name for kind in KINDS if ground is DISK or not kind.needs_target}


def test_cases_are_bounded() -> None:
    for number in range(CASES):
        script = make_case(2, number, DISK).script
        assert sum(map(len, image(script))) < 4 << 20
        assert script.connections <= 100


def test_every_kind_says_what_it_does() -> None:
    assert all(kind.about.endswith(".") for kind in KINDS)
    assert len({kind.name for kind in KINDS}) == len(KINDS)


def test_cases_can_be_shown() -> None:
    for number in range(CASES // 2):
        shown = list(describe(make_case(1, number, DISK).script))
        assert all(isinstance(text, str) and text for text in shown)


# --- What an encoder fills in -----------------------------------------------------------------------------------------


def test_numbers_are_those_of_a_well_behaved_initiator() -> None:
    encoder = Encoder(cmd_sn=0xFFFFFFFF)
    sent = [ISCSI(encoder.encode(Send(ISCSI_NopOut(immediate=now)))) for now in (0, 1, 0, 0)]
    assert [pdu.cmd_sn for pdu in sent] == [0xFFFFFFFF, 0, 0, 1]
    assert len({pdu.initiator_task_tag for pdu in sent}) == 4


def test_numbers_can_be_wrong_on_purpose() -> None:
    encoder = Encoder(cmd_sn=5)
    away = ISCSI(encoder.encode(Send(ISCSI_NopOut(), cmd_sn_away=-1)))
    chosen = ISCSI(encoder.encode(Send(ISCSI_NopOut(cmd_sn=99, initiator_task_tag=1))))
    usual = ISCSI(encoder.encode(Send(ISCSI_NopOut())))
    assert [pdu.cmd_sn for pdu in (away, chosen, usual)] == [4, 99, 5]


@pytest.mark.parametrize(("spoil_header", "spoil_data"), [(1, 0), (0, 1 << 31), (3, 5), (0, 0)])
def test_digests_are_spoiled_as_asked(spoil_header: int, spoil_data: int) -> None:
    encoder = Encoder(header_digest=True, data_digest=True)
    ping = Send(ISCSI_NopOut(data=b"ping!"))
    right = encoder.encode(ping)
    encoder = Encoder(header_digest=True, data_digest=True)
    sent = encoder.encode(Send(ping.pdu, spoil_header=spoil_header, spoil_data=spoil_data))
    assert len(sent) == pdu_bytes(sent, True, True)
    with digests(True, True):
        wanted, found = ISCSI(right), ISCSI(sent)
    assert found.header_digest == wanted.header_digest ^ spoil_header
    assert found.data_digest == wanted.data_digest ^ spoil_data


def test_an_r2t_is_answered_with_what_it_asked_for() -> None:
    r2t = bytes(ISCSI_R2T(initiator_task_tag=9, target_transfer_tag=77, buffer_offset=512))
    r2t = r2t[:44] + (20000).to_bytes(4, "big")
    sent = [ISCSI(part) for part in Encoder().data_out(AnswerR2T(), r2t)]
    assert [len(pdu.data) for pdu in sent] == [8192, 8192, 3616]
    assert [pdu.buffer_offset for pdu in sent] == [512, 8704, 16896]
    assert [pdu.data_sn for pdu in sent] == [0, 1, 2]
    assert [pdu.final for pdu in sent] == [0, 0, 1]
    assert {(pdu.initiator_task_tag, pdu.target_transfer_tag) for pdu in sent} == {(9, 77)}


def test_an_r2t_can_be_answered_wrongly() -> None:
    r2t = bytes(ISCSI_R2T(initiator_task_tag=9, target_transfer_tag=77))[:44] + (512).to_bytes(4, "big")
    (sent,) = Encoder().data_out(AnswerR2T(transfer_tag_away=-1, offset_away=512, length_away=-1, final=False), r2t)
    pdu = ISCSI(sent)
    assert (pdu.target_transfer_tag, pdu.buffer_offset, len(pdu.data), pdu.final) == (76, 512, 511, 0)
