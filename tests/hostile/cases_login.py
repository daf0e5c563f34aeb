"""Logins of every wrong kind: stages, keys, values, CHAP, sessions that exist or do not, text without end."""

from __future__ import annotations

from random import Random

from san_target.wire import opcodes
from tests.hostile.attack import ISID, Device, LogIn, Pass, Raw, Send, Step, Wait
from tests.hostile.battlefield import ATTACKED, ATTACKER, LOCKED, QUIET
from tests.hostile.cases_protocol import edge, good, junk, safe_write, unfinished_write

_KEYS = (
    "HeaderDigest",
    "DataDigest",
    "MaxConnections",
    "InitialR2T",
    "ImmediateData",
    "MaxRecvDataSegmentLength",
    "MaxBurstLength",
    "FirstBurstLength",
    "DefaultTime2Wait",
    "DefaultTime2Retain",
    "MaxOutstandingR2T",
    "DataPDUInOrder",
    "DataSequenceInOrder",
    "ErrorRecoveryLevel",
    "SessionType",
    "TaskReporting",
    "iSCSIProtocolLevel",
    "InitiatorName",
    "InitiatorAlias",
    "TargetName",
    "TargetAlias",
    "TargetAddress",
    "TargetPortalGroupTag",
    "SendTargets",
    "AuthMethod",
    "CHAP_A",
    "CHAP_I",
    "CHAP_C",
    "CHAP_N",
    "CHAP_R",
    "IFMarker",
    "OFMarkInt",
    "X#NodeArchitecture",
    "X-com.example.key",
    "Unknown",
)
_VALUES = (
    "Yes",
    "No",
    "None",
    "CRC32C",
    "CRC32C,None",
    "None,CRC32C",
    "CHAP,None",
    "CHAP",
    "KRB5",
    "Reject",
    "Irrelevant",
    "NotUnderstood",
    "0",
    "1",
    "2",
    "5",
    "7,5",
    "511",
    "512",
    "8192",
    "65535",
    "65536",
    "16777215",
    "16777216",
    "4294967296",
    "18446744073709551616",
    "-1",
    "0x",
    "0x200",
    "0xfffffffffffffffffffff",
    "0b",
    "0bAAAA",
    "01",
    "1 ",
    "",
    ",",
    "Normal",
    "Discovery",
    "All",
    "alice",
    "0x" + "00" * 16,
    "0x" + "ab" * 1024,
    "0x" + "ab" * 1100,
    "a" * 255,
    "a" * 256,
    "iqn.2026-01.net.example:\N{GREEK SMALL LETTER ALPHA}",
    "a,b~65535",
)


def _pair(random: Random) -> bytes:
    key = random.choice(_KEYS)
    value = random.choice(_VALUES)
    match random.randrange(12):
        case 0:
            return key.encode() + b"=" + junk(random, 12) + b"\0"
        case 1:
            return junk(random, 12) + b"=" + value.encode() + b"\0"
        case _:
            return f"{key}={value}".encode() + b"\0"


def _identity(random: Random) -> bytes:
    """Who logs in where: mostly what could be right."""
    wrong = random.choice(("not-a-name", "", "iqn.2026-01.net.example:" + "x" * 220))
    name = random.choice((ATTACKER, ATTACKER, ATTACKER, ATTACKER, wrong))
    target = random.choice((ATTACKED, ATTACKED, ATTACKED, LOCKED, QUIET, "iqn.2026-01.io.san-target:none", ""))
    kind = random.choice(("Normal", "Normal", "Normal", "Discovery", "Other"))
    pairs = [f"InitiatorName={name}", f"TargetName={target}", f"SessionType={kind}"]
    if random.random() < 0.1:
        pairs.remove(random.choice(pairs))
    random.shuffle(pairs)
    return "".join(f"{pair}\0" for pair in pairs).encode()


def _flags(random: Random) -> int:
    usual = (0x87, 0x81, 0x83, 0x80, 0x04, 0x00, 0x44, 0x40, 0xC4, 0x85, 0x86, 0x8F)
    return random.choice((*usual, random.randrange(256)))


def _request(random: Random, data: bytes, **changes: int) -> Send:
    pdu = Send(
        opcodes.LOGIN_REQUEST,
        _flags(random),
        tag=1,
        word20=0,
        data=data,
        immediate=True,
        lun=ISID << 16 | random.choice((0, 0, 0, 0, 1, 0xFFFF)),
    )
    for name, value in changes.items():
        setattr(pdu, name, value)
    if random.random() < 0.1:
        match random.randrange(6):
            case 0:
                pdu.bytes2 = edge(random, 16)  # versions
            case 1:
                pdu.tag = edge(random)
            case 2:
                pdu.lun = edge(random, 64)
            case 3:
                pdu.word20 = edge(random)  # CID
            case 4:
                pdu.immediate = False
            case _:
                pdu.exp_stat_sn = edge(random)
    return pdu


def _keys(random: Random) -> bytes:
    return b"".join(_pair(random) for _ in range(random.choice((0, 1, 2, 3, 8))))


def logins(random: Random) -> list[Step]:
    """Requests of any stage, flags and text, one after the other as they are answered."""
    steps: list[Step] = [LogIn(None, again=True)]
    for number in range(random.randrange(1, 5)):
        data = (_identity(random) if number == 0 else b"") + _keys(random)
        steps += [_request(random, data), Wait()]
    return [*steps, good(random)]


def operational(random: Random) -> list[Step]:
    """A login that is right up to the keys: mostly one request that could end it."""
    data = f"InitiatorName={ATTACKER}\0TargetName={ATTACKED}\0SessionType=Normal\0".encode() + _keys(random)
    first = _request(random, data)
    first.flags = 0x87
    return [LogIn(None, again=True), first, Wait(), good(random), Wait()]


def chap(random: Random) -> list[Step]:
    """CHAP in the wrong order, with the wrong algorithm, response, identifier or challenge; or without any."""
    identity = f"InitiatorName={ATTACKER}\0TargetName={LOCKED}\0SessionType=Normal\0".encode()
    responses = (b"0x" + b"00" * 16, b"0x" + b"00" * 1100, b"0b!!", b"", b"123", b"0x" + b"f" * 33)
    parts = [
        b"AuthMethod=" + random.choice((b"CHAP", b"CHAP,None", b"None", b"")) + b"\0",
        b"CHAP_A=" + random.choice((b"5", b"7,6,5", b"9", b"", b"5," * 500)) + b"\0",
        b"CHAP_N=alice\0CHAP_R=" + random.choice(responses) + b"\0",
        b"CHAP_N=alice\0CHAP_R=0x00\0CHAP_C=0x"
        + b"0a" * 16
        + b"\0CHAP_I="
        + random.choice((b"1", b"256", b"x"))
        + b"\0",
    ]
    if random.random() < 0.4:
        random.shuffle(parts)
    steps: list[Step] = [LogIn(None, again=True)]
    for number, part in enumerate(parts[: random.randrange(1, 5)]):
        pdu = _request(random, (identity if number == 0 else b"") + part)
        pdu.flags = random.choice((0x81, 0x81, 0x00, 0x83, 0x87))
        steps += [pdu, Wait()]
    return [*steps, good(random)]


def half(random: Random) -> list[Step]:
    """Logins that stop half way, send too early, never end, or end with the network."""
    stage = random.choice((None, "security", "operational"))
    steps: list[Step] = [LogIn(stage, again=True)]
    match random.randrange(4):
        case 0:
            steps += [_request(random, _keys(random)) for _ in range(random.randrange(2, 5))]  # without waiting
        case 1:
            more = _request(random, b"A" * random.choice((1, 1000, 8192)), flags=0x44)
            steps += [step for _ in range(random.choice((5, 70))) for step in (more, Wait())]
        case 2:
            steps += [_request(random, b"", flags=0x04), Wait()] * random.choice((1, 70))
        case _:
            steps += [Raw(junk(random, 47)), Pass(random.choice((1, 14, 16)))]
    return [*steps, Pass(random.choice((0, 20)))]


def sessions(random: Random) -> list[Step]:
    """The same initiator port again while its session is busy, or a second connection to a session, there or not."""
    steps: list[Step] = [LogIn("full", again=True), Device(at_once=False, held=random.random() < 0.5)]
    steps += [random.choice((good, safe_write, unfinished_write))(random) for _ in range(random.randrange(4))]
    for _ in range(random.randrange(1, 4)):
        # The handles of the witnesses' sessions and of the attacker's are small numbers.
        tsih = random.choice((0, 0, 0, *range(1, 12), 0xFFFF))
        data = f"InitiatorName={ATTACKER}\0TargetName={ATTACKED}\0SessionType=Normal\0".encode()
        second = Send(opcodes.LOGIN_REQUEST, 0x87, tag=1, word20=random.choice((0, 1 << 16)), data=data, immediate=True)
        second.lun = (ISID + random.choice((0, 0, 1))) << 16 | tsih
        steps += [LogIn(None, again=True, beside=random.random() < 0.8), second, random.choice((Wait(), Pass(20)))]
    return [*steps, good(random), Wait(), Device(at_once=False), Wait(), good(random), Wait()]
