"""iSCSI for scapy: every PDU of RFC 7143 as a Packet, to craft PDUs that no initiator would send and to read captures.

scapy knows no iSCSI. Importing this module binds it to TCP port 3260; in scapy's shell::

    >>> from initiator_sim.packets import *
    >>> pdu = ISCSI_ScsiCommand(final=1, read=1, initiator_task_tag=7, expected_data_transfer_length=512, cmd_sn=1)
    >>> pdu.cdb = bytes.fromhex("28000000000000000100000000000000")
    >>> raw(pdu)                                          # 48 bytes
    >>> raw(ISCSI_NopOut(data=b"ping", data_segment_length=0xffffff))   # a length that lies
    >>> ISCSI(raw(pdu)).show()                            # any PDU, by its opcode
    >>> sniff(offline="login.pcap", session=TCPSession)   # PDUs cut out of the stream, digests as they were negotiated

Fields have the names and the order of RFC 7143 section 11 (those of `san_target.wire.pdus`), and reserved ones are
fields too: `reserved1`, `reserved2`, ... are zero unless set. What is computed when left None: `total_ahs_length`,
`data_segment_length`, `padding`, both digests. Any of them can be set, to a wrong value too.

Whether PDUs have digests is not in the PDUs but was said at login. A crafted PDU has the digests that are set
(`header_digest=0xbad`), or all that `digests(header=True, data=True)` switches on; a captured one what the login
in the same capture agreed on, or again `digests`.

With `san_target` it shares only the numbers of the opcodes and the CRC, so each can be held against the other.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Final

from scapy.config import conf
from scapy.fields import (
    BitEnumField,
    BitField,
    ConditionalField,
    FieldLenField,
    IntField,
    PacketListField,
    ShortField,
    StrLenField,
    ThreeBytesField,
    XByteField,
    XIntField,
    XLEIntField,
    XLongField,
    XStrFixedLenField,
)
from scapy.layers.inet import TCP
from scapy.packet import Packet, bind_layers

from san_target.wire import opcodes
from san_target.wire.digest import digest

__all__ = ["PORT", "bidirectional_read_length", "digests", "extended_cdb", "pdu_bytes"]

PORT: Final = 3260

conf.contribs.setdefault("iSCSI", {"header_digest": False, "data_digest": False})


@contextmanager
def digests(header: bool = False, data: bool = False) -> Iterator[None]:
    """Within it, PDUs are built and dissected with these digests (CRC32C)."""
    state = conf.contribs["iSCSI"]
    before = dict(state)
    state.update(header_digest=header, data_digest=data)
    try:
        yield
    finally:
        state.update(before)


# --- Additional header segments ---------------------------------------------------------------------------------------


class _Padding(StrLenField):
    """Zeros up to the next word, unless set. `covers` tells the length of what is padded."""

    __slots__ = ("_covers",)

    def __init__(self, name: str, covers: Callable[[Any], int]) -> None:
        super().__init__(name, b"", length_from=lambda pdu: -covers(pdu) % 4)
        self.default = None
        self._covers = covers

    def i2m(self, pkt: Any, x: Any) -> bytes:
        return bytes(-self._covers(pkt) % 4) if x is None else bytes(x)

    def i2len(self, pkt: Any, x: Any) -> int:
        return len(self.i2m(pkt, x))

    def i2repr(self, pkt: Any, x: Any) -> str:
        return self.i2m(pkt, x).hex()


class ISCSI_AHS(Packet):
    """An additional header segment of any type (RFC 7143 11.2.2). `specific` is what AHSLength counts."""

    name = "iSCSI additional header"
    fields_desc = [  # noqa: RUF012
        FieldLenField("ahs_length", None, fmt="!H", length_of="specific"),
        BitField("reserved1", 0, 2),
        BitEnumField("type", 0, 6, {1: "extended CDB", 2: "bidirectional read length"}),
        StrLenField("specific", b"", length_from=lambda ahs: ahs.ahs_length),
        _Padding("padding", lambda ahs: 3 + len(ahs.specific)),
    ]

    def extract_padding(self, s: bytes) -> tuple[bytes, bytes]:
        return b"", s


def extended_cdb(tail: bytes) -> ISCSI_AHS:
    """The bytes of a CDB beyond its first 16 (RFC 7143 11.2.2.3)."""
    return ISCSI_AHS(type=1, specific=b"\0" + tail)


def bidirectional_read_length(length_bytes: int) -> ISCSI_AHS:
    """The expected read length of a bidirectional command (RFC 7143 11.2.2.4)."""
    return ISCSI_AHS(type=2, specific=b"\0" + length_bytes.to_bytes(4, "big"))


# --- What all PDUs share ----------------------------------------------------------------------------------------------

OPCODES: Final = {
    opcodes.NOP_OUT: "NOP-Out",
    opcodes.SCSI_COMMAND: "SCSI Command",
    opcodes.TASK_MANAGEMENT_REQUEST: "Task Management Request",
    opcodes.LOGIN_REQUEST: "Login Request",
    opcodes.TEXT_REQUEST: "Text Request",
    opcodes.DATA_OUT: "SCSI Data-Out",
    opcodes.LOGOUT_REQUEST: "Logout Request",
    opcodes.SNACK_REQUEST: "SNACK Request",
    opcodes.NOP_IN: "NOP-In",
    opcodes.SCSI_RESPONSE: "SCSI Response",
    opcodes.TASK_MANAGEMENT_RESPONSE: "Task Management Response",
    opcodes.LOGIN_RESPONSE: "Login Response",
    opcodes.TEXT_RESPONSE: "Text Response",
    opcodes.DATA_IN: "SCSI Data-In",
    opcodes.LOGOUT_RESPONSE: "Logout Response",
    opcodes.R2T: "Ready To Transfer",
    opcodes.ASYNC_MESSAGE: "Asynchronous Message",
    opcodes.REJECT: "Reject",
}


class _DataLength(ThreeBytesField):
    """What `data` has, unless set."""

    def __init__(self, name: str) -> None:
        super().__init__(name, 0)
        self.default = None

    def i2m(self, pkt: Any, x: Any) -> Any:
        return super().i2m(pkt, min(len(pkt.data), 0xFFFFFF) if x is None else x)


def _data_bytes(pdu: Any) -> int:
    """The length of the data segment: as sent, or as said by a PDU that is being dissected."""
    return len(pdu.data) if pdu.data_segment_length is None else int(pdu.data_segment_length)


def _has_digest(name: str) -> Any:
    def present(pdu: Any) -> bool:
        if pdu.fields.get(name) is not None:
            return True
        return bool(conf.contribs["iSCSI"][name]) and (name == "header_digest" or bool(_data_bytes(pdu)))

    return present


_BEHIND_THE_HEADER: Final = (
    PacketListField("ahs", [], ISCSI_AHS, length_from=lambda pdu: 4 * pdu.total_ahs_length),
    ConditionalField(XLEIntField("header_digest", None), _has_digest("header_digest")),
    StrLenField("data", b"", length_from=lambda pdu: pdu.data_segment_length),
    _Padding("padding", _data_bytes),
    ConditionalField(XLEIntField("data_digest", None), _has_digest("data_digest")),
)
_INTEGERS: Final = {1: XByteField, 2: ShortField, 4: IntField, 8: XLongField}


class _Layout:
    """Makes the fields of a PDU from words "name:width=default"; width 1 and default 0 may be left out.

    The name "-" stands for reserved bits or bytes, which become fields `reserved1`, `reserved2`, ... of this PDU.
    """

    def __init__(self) -> None:
        self._reserved = 0

    def _words(self, words: str) -> Iterator[tuple[str, int, int]]:
        for word in words.split():
            name, _, default = word.partition("=")
            name, _, width = name.partition(":")
            if name == "-":
                self._reserved += 1
                name = f"reserved{self._reserved}"
            yield name, int(width or 1), int(default or "0", 0)

    def bits(self, words: str) -> list[Any]:
        return [BitField(name, default, width) for name, width, default in self._words(words)]

    def bytes(self, words: str) -> list[Any]:
        return [self._bytes_field(*word) for word in self._words(words)]

    def _bytes_field(self, name: str, width: int, default: int) -> Any:
        if name.endswith("tag"):
            return XIntField(name, default)
        if name in ("cdb", "isid") or name.startswith("reserved"):
            return XStrFixedLenField(name, default.to_bytes(width, "big"), width)
        return _INTEGERS[width](name, default)


def _fields(opcode: int, flags: str, bytes2_to_3: str, bytes8_to_47: str) -> list[Any]:
    """All fields of a PDU, byte 1 as bits; bytes 4 to 7 (the lengths) and what follows the header are always the same.

    Byte 0 has the I bit, which in PDUs of a target is reserved (RFC 7143 11.2.1.1).
    """
    layout = _Layout()
    return [
        BitField("reserved0", 0, 1),
        BitField("immediate", int(opcode == opcodes.LOGIN_REQUEST), 1),
        BitEnumField("opcode", opcode, 6, OPCODES),
        *layout.bits(flags),
        *layout.bytes(bytes2_to_3),
        FieldLenField("total_ahs_length", None, fmt="B", length_of="ahs", adjust=lambda pdu, size: min(size // 4, 255)),
        _DataLength("data_segment_length"),
        *layout.bytes(bytes8_to_47),
        *_BEHIND_THE_HEADER,
    ]


_TO_TASK: Final = "lun:8 initiator_task_tag:4"
_OF_TASK: Final = "-:8 initiator_task_tag:4"
_OF_NO_TASK: Final = "initiator_task_tag:4=0xffffffff"
_TTT: Final = "target_transfer_tag:4=0xffffffff"
_REQUEST: Final = "cmd_sn:4 exp_stat_sn:4"
_RESPONSE: Final = "stat_sn:4 exp_cmd_sn:4 max_cmd_sn:4"


class ISCSI(Packet):
    """Any PDU: `ISCSI(bytes)` gives the class of its opcode. By itself the form of one whose opcode is unknown."""

    name = "iSCSI"
    fields_desc = _fields(0x3E, "flags:8=0x80", "-:2", "lun:8 initiator_task_tag:4 -:28")
    by_opcode: ClassVar[dict[int, type["ISCSI"]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        opcode = next(field.default for field in cls.fields_desc if field.name == "opcode")
        setattr(cls, "_name", f"iSCSI {OPCODES[opcode]}")  # noqa: B010
        cls.by_opcode[opcode] = cls

    @classmethod
    def dispatch_hook(cls, _pkt: bytes | None = None, *args: Any, **kargs: Any) -> type[Packet]:
        if not _pkt or cls is not ISCSI:
            return cls
        return cls.by_opcode.get(_pkt[0] & opcodes.OPCODE_MASK, ISCSI)

    def post_build(self, pkt: bytes, pay: bytes) -> bytes:
        """Fill in the digests that are switched on but were not given."""
        data_end = len(pkt)
        if self._is_due("data_digest"):
            data_end -= 4
            data_from = data_end - len(self.data) - len(self.getfield_bytes("padding"))
            pkt = pkt[:data_end] + digest(pkt[data_from:data_end])
        if self._is_due("header_digest"):
            end = opcodes.BHS_BYTES + len(self.getfield_bytes("ahs"))
            pkt = pkt[:end] + digest(pkt[:end]) + pkt[end + 4 :]
        return pkt + pay

    def _is_due(self, name: str) -> bool:
        return self.fields.get(name) is None and bool(_has_digest(name)(self))

    def getfield_bytes(self, name: str) -> bytes:
        """The bytes of one field behind the header, as they are built."""
        field, value = self.getfield_and_val(name)
        return bytes(field.addfield(self, b"", value))

    def guess_payload_class(self, payload: bytes) -> type[Packet]:
        # TCP knows no borders: the next PDU may stand behind this one.
        return ISCSI if len(payload) >= opcodes.BHS_BYTES else conf.raw_layer

    @classmethod
    def tcp_reassemble(cls, data: bytes, metadata: dict[str, Any], session: dict[str, Any]) -> Packet | None:
        """For `TCPSession`: the first PDU of the stream once it has all arrived, with the digests agreed at login."""
        header, data_too = session.get("header_digest", False), session.get("data_digest", False)
        wanted = pdu_bytes(data, header, data_too)
        if wanted is None or len(data) < wanted:
            return None
        with digests(header, data_too):
            pdu = ISCSI(data[:wanted])
        _follow_login(pdu, session)
        return pdu / conf.padding_layer(data[wanted:]) if len(data) > wanted else pdu


def pdu_bytes(data: bytes, header_digest: bool = False, data_digest: bool = False) -> int | None:
    """The length of the PDU at the start of a stream, as its header says; None while that is incomplete."""
    if len(data) < opcodes.BHS_BYTES:
        return None
    segment = int.from_bytes(data[5:8], "big")
    return opcodes.BHS_BYTES + 4 * (data[4] + header_digest + (data_digest and segment > 0)) + (segment + 3 & ~3)


def _follow_login(pdu: Packet, session: dict[str, Any]) -> None:
    """Remember what a captured login agrees on about digests; they begin behind its last response."""
    if not isinstance(pdu, ISCSI_LoginResponse):
        return
    for key, value in re.findall(rb"(?:^|\0)(Header|Data)Digest=(\w+)", pdu.data):
        session[f"{key.decode().lower()}_digest_agreed"] = value == b"CRC32C"
    if pdu.transit and pdu.next_stage == 3 and pdu.status_class == 0:
        session["header_digest"] = session.get("header_digest_agreed", False)
        session["data_digest"] = session.get("data_digest_agreed", False)


# --- SCSI: commands, responses, data ----------------------------------------------------------------------------------


class ISCSI_ScsiCommand(ISCSI):
    """RFC 7143 11.3."""

    fields_desc = _fields(
        opcodes.SCSI_COMMAND,
        "final read write -:2 attribute:3",
        "-:2",
        f"{_TO_TASK} expected_data_transfer_length:4 {_REQUEST} cdb:16",
    )


class ISCSI_ScsiResponse(ISCSI):
    """RFC 7143 11.4."""

    fields_desc = _fields(
        opcodes.SCSI_RESPONSE,
        "final=1 -:2 bidirectional_residual_overflow bidirectional_residual_underflow"
        " residual_overflow residual_underflow -",
        "response:1 status:1",
        f"{_OF_TASK} snack_tag:4 {_RESPONSE} exp_data_sn:4 bidirectional_read_residual_count:4 residual_count:4",
    )


class ISCSI_DataOut(ISCSI):
    """RFC 7143 11.7."""

    fields_desc = _fields(
        opcodes.DATA_OUT, "final -:7", "-:2", f"{_TO_TASK} {_TTT} -:4 exp_stat_sn:4 -:4 data_sn:4 buffer_offset:4 -:4"
    )


class ISCSI_DataIn(ISCSI):
    """RFC 7143 11.7."""

    fields_desc = _fields(
        opcodes.DATA_IN,
        "final acknowledge -:3 residual_overflow residual_underflow status_present",
        "- status",
        f"{_TO_TASK} {_TTT} {_RESPONSE} data_sn:4 buffer_offset:4 residual_count:4",
    )


class ISCSI_R2T(ISCSI):
    """RFC 7143 11.8."""

    fields_desc = _fields(
        opcodes.R2T,
        "final=1 -:7",
        "-:2",
        f"{_TO_TASK} target_transfer_tag:4 {_RESPONSE} r2t_sn:4 buffer_offset:4 desired_data_transfer_length:4",
    )


# --- Task management and asynchronous messages ------------------------------------------------------------------------


class ISCSI_TaskManagementRequest(ISCSI):
    """RFC 7143 11.5."""

    fields_desc = _fields(
        opcodes.TASK_MANAGEMENT_REQUEST,
        "final=1 function:7",
        "-:2",
        f"{_TO_TASK} referenced_task_tag:4=0xffffffff {_REQUEST} ref_cmd_sn:4 exp_data_sn:4 -:8",
    )


class ISCSI_TaskManagementResponse(ISCSI):
    """RFC 7143 11.6."""

    fields_desc = _fields(
        opcodes.TASK_MANAGEMENT_RESPONSE, "final=1 -:7", "response -", f"{_OF_TASK} -:4 {_RESPONSE} -:12"
    )


class ISCSI_AsyncMessage(ISCSI):
    """RFC 7143 11.9."""

    fields_desc = _fields(
        opcodes.ASYNC_MESSAGE,
        "final=1 -:7",
        "-:2",
        f"lun:8 {_OF_NO_TASK} -:4 {_RESPONSE} async_event async_vcode parameter1:2 parameter2:2 parameter3:2 -:4",
    )


# --- Login, text, logout ----------------------------------------------------------------------------------------------


class ISCSI_TextRequest(ISCSI):
    """RFC 7143 11.10."""

    fields_desc = _fields(opcodes.TEXT_REQUEST, "final continue_ -:6", "-:2", f"{_TO_TASK} {_TTT} {_REQUEST} -:16")


class ISCSI_TextResponse(ISCSI):
    """RFC 7143 11.11."""

    fields_desc = _fields(opcodes.TEXT_RESPONSE, "final continue_ -:6", "-:2", f"{_TO_TASK} {_TTT} {_RESPONSE} -:12")


class ISCSI_LoginRequest(ISCSI):
    """RFC 7143 11.12."""

    fields_desc = _fields(
        opcodes.LOGIN_REQUEST,
        "transit continue_ -:2 current_stage:2 next_stage:2",
        "version_max version_min",
        f"isid:6 tsih:2 initiator_task_tag:4 cid:2 -:2 {_REQUEST} -:16",
    )


class ISCSI_LoginResponse(ISCSI):
    """RFC 7143 11.13."""

    fields_desc = _fields(
        opcodes.LOGIN_RESPONSE,
        "transit continue_ -:2 current_stage:2 next_stage:2",
        "version_max version_active",
        f"isid:6 tsih:2 initiator_task_tag:4 -:4 {_RESPONSE} status_class status_detail -:10",
    )


class ISCSI_LogoutRequest(ISCSI):
    """RFC 7143 11.14."""

    fields_desc = _fields(opcodes.LOGOUT_REQUEST, "final=1 reason:7", "-:2", f"{_OF_TASK} cid:2 -:2 {_REQUEST} -:16")


class ISCSI_LogoutResponse(ISCSI):
    """RFC 7143 11.15."""

    fields_desc = _fields(
        opcodes.LOGOUT_RESPONSE,
        "final=1 -:7",
        "response -",
        f"{_OF_TASK} -:4 {_RESPONSE} -:4 time2wait:2 time2retain:2 -:4",
    )


# --- Recovery and keepalive -------------------------------------------------------------------------------------------


class ISCSI_SnackRequest(ISCSI):
    """RFC 7143 11.16."""

    fields_desc = _fields(
        opcodes.SNACK_REQUEST,
        "final=1 -:3 snack_type:4",
        "-:2",
        f"{_TO_TASK} {_TTT} -:4 exp_stat_sn:4 -:8 beg_run:4 run_length:4",
    )


class ISCSI_Reject(ISCSI):
    """RFC 7143 11.17."""

    fields_desc = _fields(opcodes.REJECT, "final=1 -:7", "reason -", f"-:8 {_OF_NO_TASK} -:4 {_RESPONSE} data_sn:4 -:8")


class ISCSI_NopOut(ISCSI):
    """RFC 7143 11.18."""

    fields_desc = _fields(opcodes.NOP_OUT, "final=1 -:7", "-:2", f"{_TO_TASK} {_TTT} {_REQUEST} -:16")


class ISCSI_NopIn(ISCSI):
    """RFC 7143 11.19."""

    fields_desc = _fields(opcodes.NOP_IN, "final=1 -:7", "-:2", f"lun:8 {_OF_NO_TASK} {_TTT} {_RESPONSE} -:12")


bind_layers(TCP, ISCSI, dport=PORT)
bind_layers(TCP, ISCSI, sport=PORT)

__all__ += [name for name in globals() if name.startswith("ISCSI")]
