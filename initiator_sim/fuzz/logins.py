"""Cases before the end of login: half-open, slow, out of order, with keys and values of every kind, and CHAP."""

from random import Random
from typing import Any, Final

from initiator_sim.fuzz import craft
from initiator_sim.fuzz.craft import Ground, edge, good, junk
from initiator_sim.fuzz.script import Await, Begin, Encoder, Ending, Raw, Script, Send, Stage, Step
from initiator_sim.packets import ISCSI
from initiator_sim.parameters import RULES, Pair, Rule
from san_target.wire import opcodes

_CONNECTED: Final = Begin(Stage.CONNECTED)
_ANSWER: Final = Await(0.3)
_SLOW_S: Final = 2.5
_OTHER_KEYS: Final = (
    *("AuthMethod", "SendTargets", "TargetName", "InitiatorName", "InitiatorAlias", "TargetAlias", "TargetAddress"),
    *("TargetPortalGroupTag", "SessionType", "OFMarker", "IFMarkInt", "X-org.example.key", "X#Node", "", "a b"),
)
_ODD_VALUES: Final = (
    *("", ",", "None,", "None,None", "CRC32C,CRC32C", "yes", "YES", "Maybe", "Reject", "NotUnderstood", "Irrelevant"),
    *("-1", "+5", " 5", "5 ", "05", "0x", "0xg", "0b", "0b=", "1~", "1~2", "2~1", "1e3", "\N{DIGIT FIVE}\N{SNOWMAN}"),
    *("0x" + "f" * 17, "9" * 40, "v" * 255, "v" * 256, "v" * 4000, "%s%n", "../../x", "a=b=c"),
)
_AUTHENTICATION: Final[tuple[tuple[bytes, ...], ...]] = (
    (b"AuthMethod=CHAP", b"AuthMethod=CHAP,None", b"AuthMethod=KRB5,SRP", b"AuthMethod="),
    (b"CHAP_A=5", b"CHAP_A=7,6,5", b"CHAP_A=0", b"CHAP_A=" + b"5," * 400, b"CHAP_A=MD5"),
    (b"CHAP_N=nobody", b"CHAP_N=", b"CHAP_N=" + b"n" * 300),
    (b"CHAP_R=0x" + b"00" * 16, b"CHAP_R=0x0", b"CHAP_R=0x" + b"00" * 1500, b"CHAP_R=0b!", b"CHAP_R=12"),
    (b"CHAP_I=1", b"CHAP_I=256", b"CHAP_I=-1"),
    (b"CHAP_C=0x" + b"0a" * 16, b"CHAP_C=0x", b"CHAP_C=0b" + b"Cg" * 1400),
)


def half_open(random: Random, ground: Ground) -> Script:
    """Connections that begin a login, or nothing at all, and then say no more; some stay, many at once."""
    whole = Encoder().encode(craft.login(random, craft.names(ground), current_stage=0, next_stage=1))
    stop = random.choice((0, 1, opcodes.BHS_BYTES - 1, opcodes.BHS_BYTES, random.randrange(len(whole)), len(whole)))
    ending = random.choice((Ending.LINGER, Ending.LINGER, Ending.CLOSE, Ending.RESET))
    return Script(_CONNECTED, (Raw(whole[:stop]),), ending, connections=random.choice((1, 1, 4, 16)))


def slow_senders(random: Random, ground: Ground) -> Script:
    """A login, or a command in a session, that comes byte by byte and mostly never ends."""
    if random.random() < 0.6:
        begin, sound = _CONNECTED, craft.login(random, craft.names(ground))
    else:
        begin, sound = craft.session(random, digests=0.0), craft.outgoing_whole(random, ground)
    whole = Encoder().encode(sound)[: random.choice((20, 47, 60, 120))]
    piece = random.choice((1, 2, 5))
    pause_s = _SLOW_S / (len(whole) / piece)
    return Script(begin, (Raw(whole, piece, pause_s),), random.choice((Ending.CLOSE, Ending.RESET, Ending.LINGER)))


def _value(random: Random, key: str) -> str:
    rule = RULES.get(key)
    if rule is None or random.random() < 0.3:
        return random.choice(_ODD_VALUES)
    if rule.rule in (Rule.AND, Rule.OR):
        return random.choice(("Yes", "No"))
    if rule.rule is Rule.CHOICE:
        return random.choice(("None", "CRC32C", "CRC32C,None", "RFC3720", "FastAbort,ResponseFence"))
    number = random.choice((rule.lowest - 1, rule.lowest, rule.highest, rule.highest + 1, edge(random)))
    return random.choice((str, hex))(number)


def _pairs(random: Random, most: int) -> list[Pair]:
    keys = [random.choice((*RULES, *_OTHER_KEYS)) for _ in range(random.randrange(1, most + 1))]
    return [(key, _value(random, key)) for key in keys]


def _spoiled(random: Random, data: bytes) -> bytes:
    """Text with something wrong in it: no end, no '=', bytes that are no UTF-8, more NULs than needed."""
    match random.randrange(5):
        case 0:
            return data[:-1]
        case 1:
            return data.replace(b"=", b"", 1)
        case 2:
            return data + junk(random, 30) + b"\0"
        case 3:
            return data.replace(b"\0", b"\0\0\0", 2)
        case _:
            return data[: random.randrange(len(data) + 1)]


def login_keys(random: Random, ground: Ground) -> Script:
    """Logins that are right up to their keys: any key, values at and beyond their limits, twice, malformed."""
    pairs = craft.names(ground) + _pairs(random, random.choice((1, 3, 12)))
    data = craft.written(pairs)
    if random.random() < 0.3:
        data = _spoiled(random, data)
    return Script(_CONNECTED, (craft.login(random, data), _ANSWER, good(random, ground)))


def _request(random: Random, ground: Ground, number: int) -> Send:
    """A Login Request with any stages and flags."""
    kind = random.choice(("Normal", "Normal", "Discovery", "Other"))
    pairs = [pair for pair in craft.names(ground, kind) if random.random() < 0.9] if number == 0 else []
    pairs += _pairs(random, 3) if random.random() < 0.6 else []
    fields = {
        "transit": random.randrange(2),
        "continue_": int(random.random() < 0.2),
        "current_stage": random.choice((0, 0, 1, 1, 2, 3)),
        "next_stage": random.choice((0, 1, 1, 3, 3, 2)),
        "isid": bytes((0x80, 0xFE, 0, 0, 0, 1)),
        "tsih": random.choice((0, 0, 0, 1, 0xFFFF)),
    }
    if random.random() < 0.2:
        name = random.choice(("version_max", "version_min", "cid", "initiator_task_tag", "cmd_sn", "exp_stat_sn"))
        fields[name] = edge(random, 8 if name.startswith("version") else 16)
    fields["immediate"] = int(random.random() < 0.95)
    return craft.login(random, craft.written(pairs), **fields)


def login_order(random: Random, ground: Ground) -> Script:
    """Login Requests of any stage and flags, one after the other or without waiting for the answer."""
    steps: list[Step] = []
    waits = random.random() < 0.8
    for number in range(random.randrange(1, 6)):
        steps += [_request(random, ground, number), *([_ANSWER] if waits else [])]
    return Script(_CONNECTED, (*steps, good(random, ground)))


def authentication(random: Random, ground: Ground) -> Script:
    """CHAP in the wrong order, with wrong algorithms, responses, identifiers and challenges, or stages skipped."""
    groups = list(_AUTHENTICATION)
    if random.random() < 0.4:
        random.shuffle(groups)
    steps: list[Step] = []
    said = craft.written(craft.names(ground))
    while groups and len(steps) < 8:
        for _ in range(random.randrange(1, 3)):
            if groups:
                said += random.choice(groups.pop(0)) + b"\0"
        transit = random.random() < 0.5
        fields: dict[str, Any] = {
            "transit": int(transit),
            "current_stage": 0,
            "next_stage": random.choice((1, 3)) if transit else 0,
        }
        fields["isid"] = bytes((0x80, 0xFE, 0, 0, 0, 2))
        steps += [craft.login(random, said, **fields), _ANSWER]
        said = b""
    return Script(_CONNECTED, (*steps, good(random, ground)))


def endless_login(random: Random, ground: Ground) -> Script:
    """Logins that go on: text in more and more parts, or empty requests without end."""
    first = craft.login(random, craft.names(ground), transit=0, next_stage=0)
    same: ISCSI = first.pdu
    size = random.choice((1, 1000, 8192))
    more = craft.login(random, b"x" * size, transit=0, continue_=1, next_stage=0, isid=bytes(same.isid))
    if random.random() < 0.3:
        more = craft.login(random, b"", transit=0, next_stage=0, isid=bytes(same.isid))
    rounds = random.choice((5, 40, 80))
    return Script(_CONNECTED, (first, _ANSWER, *(step for _ in range(rounds) for step in (more, Await(0.05)))))
