"""One readable line for a PDU's basic header segment; the field names and their order are those of `wire.pdus`."""

from collections.abc import Mapping
from typing import Any, Final

from san_target.wire import opcodes, pdus
from san_target.wire.opcodes import RESERVED_TAG

PDU_NAMES: Final[dict[int, str]] = {
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
    opcodes.R2T: "R2T",
    opcodes.ASYNC_MESSAGE: "Async Message",
    opcodes.REJECT: "Reject",
}
# Short labels for the fields that are in nearly every line; the others keep their names.
LABELS: Final[dict[str, str]] = {
    "initiator_task_tag": "itt",
    "target_transfer_tag": "ttt",
    "data_segment_length": "data",
    "total_ahs_length": "ahs",
    "expected_data_transfer_length": "expected",
    "desired_data_transfer_length": "desired",
    "buffer_offset": "offset",
    "continue_": "continue",
}
TAGS: Final = frozenset({"initiator_task_tag", "target_transfer_tag", "referenced_task_tag", "snack_tag"})
# Said even when zero: their zero means something (GOOD status, first sequence number).
ALWAYS: Final = frozenset({"status", "cmd_sn", "stat_sn", "exp_cmd_sn", "max_cmd_sn", "data_sn", "response"})


def describe(header: bytes) -> tuple[str, str]:
    """(PDU name, its fields as "name=value" words) of 48 bytes; bytes that are no PDU come back as hex. Never raises
    for foreign bytes."""
    try:
        fields = pdus.parse(header)
    except pdus.PduError as error:
        return "unknown", f"{error}: {bytes(header).hex()}"
    return PDU_NAMES[fields["opcode"]], " ".join(_words(fields))


def _words(fields: Mapping[str, Any]) -> list[str]:
    """Flags that are set by name alone, numbers that are not zero, tags in hex, bytes in hex."""
    words = []
    for name, value in fields.items():
        label = LABELS.get(name, name)
        if name == "opcode" or name.startswith("_"):
            continue
        if isinstance(value, bool):
            if value:
                words.append(label)
        elif isinstance(value, bytes):
            if name == "cdb" or any(value):
                words.append(f"{label}={value.hex()}")
        elif name in TAGS:
            if value != RESERVED_TAG or name == "initiator_task_tag":
                words.append(f"{label}=0x{value:08x}")
        elif value or name in ALWAYS:
            words.append(f"{label}={value}")
    return words
