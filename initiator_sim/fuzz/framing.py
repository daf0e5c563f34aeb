"""Cases about the form of PDUs: lengths, opcodes, digests, additional headers, any field; and bytes that are none."""

import struct
from dataclasses import replace
from random import Random
from typing import Any, Final

from initiator_sim.cdb import inquiry, read16, read_capacity16
from initiator_sim.fuzz import craft
from initiator_sim.fuzz.craft import Ground, anywhere, edge, good, junk, layer, session
from initiator_sim.fuzz.guard import HARMLESS
from initiator_sim.fuzz.script import Await, Begin, Encoder, Raw, Script, Send, Stage, Step
from initiator_sim.packets import ISCSI_AHS
from san_target.wire import opcodes

_SEGMENT_BYTES_TYPICAL: Final = (8192, 65536, 262144, 1 << 20)
_SAFE_OPERATIONS: Final = sorted(HARMLESS)


def lengths(random: Random, ground: Ground) -> Script:
    """Lengths that lie, of data, additional headers and padding; PDUs that end too early."""
    sound = random.choice((good(random, ground), craft.ping(random), craft.login(random, craft.names(ground))))
    pdu = sound.pdu
    sent = len(pdu.data)
    part = None
    match random.randrange(6):
        case 0:
            pdu.data_segment_length = edge(random, 24)
        case 1:
            pdu.total_ahs_length = random.randrange(256)
        case 2:
            pdu.padding = junk(random, 7)
        case 3:
            pdu.data_segment_length = max(0, sent + random.randrange(-8, 9))
        case 4:
            part = (0, random.randrange(1, opcodes.BHS_BYTES + sent + 1))
        case _:
            pdu.data_segment_length = random.choice(_SEGMENT_BYTES_TYPICAL) + random.randrange(-1, 2)
    return Script(anywhere(random), (replace(sound, part=part), good(random, ground), Raw(junk(random, 100))))


def unknown_opcodes(random: Random, ground: Ground) -> Script:
    """Every opcode, a target's too, in every stage, with anything behind it."""
    base = layer(random.choice((opcodes.NOP_OUT, opcodes.TEXT_REQUEST, opcodes.LOGOUT_REQUEST, opcodes.SNACK_REQUEST)))
    number = random.choice([code for code in range(64) if code not in (1, 2)])
    fields: dict[str, Any] = {
        "opcode": number,
        "immediate": random.randrange(2),
        "reserved0": int(random.random() < 0.1),
    }
    if random.random() < 0.5 and any(each.name == "lun" for each in base.fields_desc):
        fields["lun"] = edge(random, 64)
    pdu = type(base)(**fields, initiator_task_tag=edge(random), data=junk(random, 64))
    return Script(anywhere(random), (Send(pdu), good(random, ground)))


def operation_codes(random: Random, ground: Ground) -> Script:
    """CDBs that only look, of any content: every service action, LBAs beyond the end, counts of any size."""
    steps: list[Step] = []
    for _ in range(random.randrange(1, 5)):
        cdb = bytearray(random.choice((bytes(16), random.randbytes(16))))
        cdb[0] = random.choice(_SAFE_OPERATIONS)
        cdb[1] = random.choice((0, cdb[1], random.randrange(32)))
        for _ in range(random.randrange(4)):
            cdb[random.randrange(2, 16)] = random.choice((0, 1, 0x80, 0xFF, random.randrange(256)))
        fields: dict[str, Any] = {"read_bytes": random.choice((0, 255, 4096, 65536))}
        if random.random() < 0.3:
            count = random.choice((4, 24, 512, 4096))
            fields = {"write_bytes": count, "data": junk(random, count)}
        if random.random() < 0.2:
            fields["lun"] = edge(random, 64)
        if random.random() < 0.2:
            fields["expected_data_transfer_length"] = edge(random, random.choice((12, 16, 32)))
        steps.append(craft.command(ground, bytes(cdb), **fields))
    return Script(session(random), (*steps, good(random, ground)))


def wrong_digests(random: Random, ground: Ground) -> Script:
    """Header and data digests with one bit or many turned over, in the middle of good PDUs."""
    header, data = random.choice(((True, False), (False, True), (True, True)))
    masks = [random.choice((0, 1 << random.randrange(32), random.getrandbits(32))) for _ in range(2)]
    spoiled = random.choice((craft.outgoing_whole(random, ground), craft.ping(random)))
    spoiled = replace(spoiled, spoil_header=masks[0], spoil_data=masks[1])
    before, after = good(random, ground), good(random, ground)
    return Script(Begin(Stage.SESSION, header, data), (before, Await(), spoiled, after))


def huge_additional_headers(random: Random, ground: Ground) -> Script:
    """Additional headers of every type and size, up to the 255 words there can be; lengths in them that lie."""
    parts = b""
    while len(parts) < random.choice((4, 40, 1020, 1020)):
        kind = random.choice((0, 1, 1, 2, 2, 3, 63))
        part = bytes(ISCSI_AHS(type=kind, specific=junk(random, random.choice((5, 16, 260, 1017)))))
        if random.random() < 0.3:
            part = struct.pack(">H", edge(random, 16)) + part[2:]
        parts += part
    parts = craft.tame(parts[:1020])
    parts += bytes(-len(parts) % 4)
    sound = random.choice((good(random, ground), craft.look(random, ground)))
    sound.pdu.total_ahs_length = len(parts) // 4
    whole = Encoder().encode(sound)
    crafted = whole[: opcodes.BHS_BYTES] + parts + whole[opcodes.BHS_BYTES :]
    return Script(session(random, digests=0.0), (Raw(crafted), Await()))


def any_field(random: Random, ground: Ground) -> Script:
    """A PDU of any kind with some of its fields set to something else, reserved ones too."""
    number = random.choice(craft.INITIATOR_OPCODES)
    pdu = layer(number, initiator_task_tag=random.getrandbits(15))
    usable = [each for each in pdu.fields_desc if each.name not in ("opcode", "ahs", "header_digest", "data_digest")]
    for each in random.sample(usable, random.randrange(1, 6)):
        if each.name in ("data", "padding"):
            value: Any = junk(random, 40)
        elif each.name == "cdb" or each.name == "isid" or hasattr(each, "length_from"):
            value = random.randbytes(int(each.sz))
        else:
            value = edge(random, getattr(each, "size", None) or int(each.sz) * 8)
        pdu.setfieldval(each.name, value)
    return Script(anywhere(random), (Send(pdu), good(random, ground)))


def reserved_bits(random: Random, ground: Ground) -> Script:
    """Good PDUs in which all reserved bits are set: nothing may come of it (RFC 7143 11.1)."""
    sound = random.choice((craft.ping(random), good(random, ground), craft.text(random, b"X-com.example=1\0")))
    for each in sound.pdu.fields_desc:
        if each.name.startswith("reserved") and random.random() < 0.7:
            wide = hasattr(each, "length_from")
            ones = b"\xff" * int(each.sz) if wide else (1 << (getattr(each, "size", None) or int(each.sz) * 8)) - 1
            sound.pdu.setfieldval(each.name, ones)
    return Script(session(random), (sound, Await()))


def junk_bytes(random: Random, ground: Ground) -> Script:
    """Bytes that are no iSCSI at all, or only begin like it, in pieces of any size."""
    data = junk(random, random.choice((40, 400, 400, 20000)))
    if random.random() < 0.4:
        data = bytes((random.choice(craft.INITIATOR_OPCODES),)) + data
    if random.random() < 0.2:
        data = (
            random.choice((b"GET / HTTP/1.1\r\nHost: target\r\n\r\n", b"\x16\x03\x01\x02\x00", b"SSH-2.0-x\r\n")) + data
        )
    return Script(anywhere(random), (Raw(data, random.choice((0, 0, 1, 7, 48)) if len(data) < 1000 else 0),))


# --- Mutations of a valid conversation --------------------------------------------------------------------------------


def conversation(random: Random, ground: Ground) -> list[bytes]:
    """What a well-behaved initiator would send, one PDU each: login, a look at the disk, a read, logout."""
    keys = [("HeaderDigest", "None"), ("InitialR2T", "Yes"), ("MaxRecvDataSegmentLength", "65536")]
    steps = [craft.login(random, craft.names(ground) + keys)]
    if ground.iqn is None:
        steps.append(craft.text(random, b"SendTargets=All\0", immediate=0))
    else:
        steps += [
            craft.command(ground, inquiry(), read_bytes=255),
            craft.command(ground, read_capacity16(), read_bytes=32),
            craft.command(ground, read16(0, 1), read_bytes=ground.block_bytes),
            craft.outgoing_whole(random, ground),
        ]
    steps += [craft.ping(random), Send(layer(opcodes.LOGOUT_REQUEST, cid=1))]
    encoder = Encoder()
    return [encoder.encode(step) for step in steps]


def mutated_conversation(random: Random, ground: Ground) -> Script:
    """A valid conversation, login and all, with bits turned over, parts left out, repeated, exchanged or put in."""
    said = conversation(random, ground)
    first = random.choice((0, 1, 1, 1))  # mostly the login itself stays
    for _ in range(random.choice((1, 1, 2, 5))):
        which = random.randrange(min(first, len(said) - 1), len(said))
        pdu = bytearray(said[which])
        at = random.randrange(len(pdu) or 1)
        match random.randrange(8):
            case 0 | 1 if pdu:
                pdu[at] ^= 1 << random.randrange(8)
            case 2 if pdu:
                pdu[at] = random.choice((0, 1, 0x7F, 0x80, 0xFF))
            case 3:
                del pdu[at : at + random.randrange(1, 60)]
            case 4:
                pdu[at:at] = junk(random, 60)
            case 5:
                pdu += bytes(pdu)
            case 6:
                pdu.clear()
            case _:
                other = random.randrange(len(said))
                said[other], pdu = bytes(pdu), bytearray(said[other])
        said[which] = bytes(pdu)
    begin = Begin(Stage.CONNECTED)
    return Script(begin, (Raw(said[0]), Await(0.3), *(Raw(part) for part in said[1:])))
