"""SANITIZE (SBC-4 5.29, 4.11): the whole medium overwritten or erased, in the background, with progress.

The operation belongs to the unit, not to the command: aborting the command, resets and the loss of the nexus do not
stop it. While it runs, and after it failed, the unit refuses what `Operation.during_sanitize` does not let pass.
CRYPTOGRAPHIC ERASE is not offered: volumes are not encrypted, so there is no key whose loss would erase them.

The state lives in memory. If the member ends while a SANITIZE runs, the next start finds none under way: the medium is
partly overwritten and the unit ready. The command that started it was not answered with GOOD then (IMMED = 0), or its
progress was never seen to end (IMMED = 1); a record in the store, so that the unit comes back in failure mode, is the
place to go on from here.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from san_target.scsi.command import OUTCOME_GOOD, TASK_ABORTED, Outcome
from san_target.scsi.operation import Access, Operation, Operations
from san_target.scsi.sense import (
    NOT_READY_SANITIZE_IN_PROGRESS,
    PARAMETER_LIST_LENGTH_ERROR,
    SANITIZE_COMMAND_FAILED,
    CheckCondition,
    invalid_field_in_cdb,
    invalid_field_in_parameter_list,
)
from san_target.volume.device import VolumeError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from san_target.scsi.command import Command
    from san_target.scsi.logical_unit import LogicalUnit

SANITIZE = 0x48
OVERWRITE, BLOCK_ERASE, EXIT_FAILURE_MODE = 0x01, 0x02, 0x1F

IMMED = 0x80
_ZNR = 0x40
_AUSE = 0x20

HEADER_BYTES = 4
SLICE_BYTES = 4 << 20
# How often a command without IMMED looks whether the operation ended; it also notices its own abort then.
WAIT_POLL_S = 0.02


@dataclass(slots=True)
class Sanitizing:
    """A SANITIZE under way, or failed. progress: 0.0 .. 1.0. unrestricted: AUSE, see `_exit_failure_mode`."""

    unrestricted: bool
    progress: float = 0.0
    failed: bool = False
    done: bool = False


@dataclass(frozen=True, slots=True)
class Overwrite:
    """block: the pattern repeated to one logical block. passes: OVERWRITE COUNT. invert: each pass inverts the last."""

    block: bytes
    passes: int
    invert: bool

    def block_of(self, number: int) -> bytes:
        if self.invert and number % 2:
            return bytes(byte ^ 0xFF for byte in self.block)
        return self.block


def parameter_list_length(cdb: bytes, _block_size: int = 0) -> int:
    return int.from_bytes(cdb[7:9], "big")


def parse_overwrite(cdb: bytes, data: bytes, block_size: int) -> Overwrite:
    """The OVERWRITE parameter list (SBC-4 5.29.2). Raises CheckCondition."""
    length = parameter_list_length(cdb)
    if not HEADER_BYTES < length <= HEADER_BYTES + block_size:
        raise invalid_field_in_cdb(7)
    if len(data) < length:
        raise CheckCondition(PARAMETER_LIST_LENGTH_ERROR)
    if data[0] & 0x60:
        # TEST asks for vendor specific patterns; there are none.
        raise invalid_field_in_parameter_list(0, 6)
    passes = data[0] & 0x1F
    if passes == 0:
        raise invalid_field_in_parameter_list(0, 4)
    pattern_bytes = int.from_bytes(data[2:4], "big")
    if not 0 < pattern_bytes <= length - HEADER_BYTES:
        raise invalid_field_in_parameter_list(2)
    pattern = data[HEADER_BYTES : HEADER_BYTES + pattern_bytes]
    return Overwrite((pattern * -(-block_size // pattern_bytes))[:block_size], passes, bool(data[0] & 0x80))


def _require_fields(unit: "LogicalUnit", command: "Command", parameters: bool) -> None:
    cdb = command.cdb
    if cdb[1] & _ZNR:
        # Zoned block devices only; reserved for others.
        raise invalid_field_in_cdb(1, 6)
    for byte in range(2, 7):
        if cdb[byte]:
            raise invalid_field_in_cdb(byte)
    if not parameters and parameter_list_length(cdb):
        raise invalid_field_in_cdb(7)
    sanitizing = unit.sanitizing
    if sanitizing is not None and not sanitizing.failed:
        raise CheckCondition(NOT_READY_SANITIZE_IN_PROGRESS, progress=sanitizing.progress)


async def _overwrite(unit: "LogicalUnit", command: "Command") -> Outcome:
    _require_fields(unit, command, parameters=True)
    request = parse_overwrite(command.cdb, bytes(command.data_out), unit.block_size)

    async def work(sanitizing: Sanitizing) -> None:
        await _overwrite_all(unit, request, sanitizing)

    return await _sanitize(unit, command, work)


async def _block_erase(unit: "LogicalUnit", command: "Command") -> Outcome:
    _require_fields(unit, command, parameters=False)

    async def work(sanitizing: Sanitizing) -> None:
        await unit.device.sanitize_erase()

    return await _sanitize(unit, command, work)


def _exit_failure_mode(unit: "LogicalUnit", command: "Command") -> Outcome:
    # SBC-4 4.11: a failed SANITIZE without AUSE can only be followed by one that succeeds.
    _require_fields(unit, command, parameters=False)
    sanitizing = unit.sanitizing
    if isinstance(sanitizing, Sanitizing) and not sanitizing.unrestricted:
        raise invalid_field_in_cdb(1, 4)
    unit.sanitizing = None
    unit.refresh_all()
    return OUTCOME_GOOD


async def _sanitize(
    unit: "LogicalUnit", command: "Command", work: "Callable[[Sanitizing], Awaitable[None]]"
) -> Outcome:
    unit.require_writable()
    failed_before = unit.sanitizing
    sanitizing = Sanitizing(unrestricted=bool(command.cdb[1] & _AUSE))
    if isinstance(failed_before, Sanitizing) and not failed_before.unrestricted:
        # A restricted failure stays restricted, whatever the next attempt asks for: the data may still be there.
        sanitizing.unrestricted = False
    unit.sanitizing = sanitizing
    unit.refresh_all()
    unit.services.spawn(_run(unit, sanitizing, work))
    if command.cdb[1] & IMMED:
        return OUTCOME_GOOD
    return await _ended(unit, command, sanitizing)


async def _run(unit: "LogicalUnit", sanitizing: Sanitizing, work: "Callable[[Sanitizing], Awaitable[None]]") -> None:
    try:
        await work(sanitizing)
        sanitizing.done = True
        sanitizing.progress = 1.0
    except VolumeError:
        # The unit tells it to every initiator from now on (failure mode); there is nothing else to report to.
        pass
    finally:
        # Also where this coroutine is cancelled or meets a bug of ours: what did not complete has failed.
        sanitizing.failed = not sanitizing.done
        unit.sanitizing = None if sanitizing.done else sanitizing
        unit.refresh_all()


async def _ended(unit: "LogicalUnit", command: "Command", sanitizing: Sanitizing) -> Outcome:
    while not sanitizing.done and not sanitizing.failed:
        if command.aborted or command.nexus.fenced:
            return Outcome(TASK_ABORTED)
        await unit.services.sleep(WAIT_POLL_S)
    if sanitizing.failed:
        raise CheckCondition(SANITIZE_COMMAND_FAILED)
    return OUTCOME_GOOD


async def _overwrite_all(unit: "LogicalUnit", request: Overwrite, sanitizing: Sanitizing) -> None:
    """Every pass over every block, no faster than `services.sanitize_bytes_per_s`: other volumes share the disks."""
    services = unit.services
    blocks = unit.device.blocks
    step = max(1, SLICE_BYTES // unit.block_size)
    total_bytes = blocks * unit.block_size * request.passes
    started_s = services.now()
    done_bytes = 0
    for number in range(request.passes):
        block = request.block_of(number)
        for lba in range(0, blocks, step):
            count = min(step, blocks - lba, unit.device.blocks - lba)  # it may have been shrunk meanwhile
            if count <= 0:
                break
            await unit.device.sanitize_overwrite(lba, block, count)
            done_bytes += count * unit.block_size
            sanitizing.progress = done_bytes / total_bytes
            ahead_s = started_s + done_bytes / services.sanitize_bytes_per_s - services.now()
            if ahead_s > 0:
                await services.sleep(ahead_s)


def _usage(action: int, length_mask: int) -> bytes:
    flags = 0 if action == EXIT_FAILURE_MODE else IMMED | _AUSE
    return bytes([SANITIZE, flags | action, 0, 0, 0, 0, 0, length_mask, length_mask, 0])


SANITIZE_OPERATIONS: Operations = {
    (SANITIZE, OVERWRITE): Operation(
        "SANITIZE, OVERWRITE",
        _usage(OVERWRITE, 0xFF),
        later=_overwrite,
        data_out=parameter_list_length,
        access=Access.WRITE,
        during_sanitize=True,
        writes_medium=True,
        aborts_safe=True,
    ),
    (SANITIZE, BLOCK_ERASE): Operation(
        "SANITIZE, BLOCK ERASE",
        _usage(BLOCK_ERASE, 0),
        later=_block_erase,
        access=Access.WRITE,
        during_sanitize=True,
        writes_medium=True,
        aborts_safe=True,
    ),
    (SANITIZE, EXIT_FAILURE_MODE): Operation(
        "SANITIZE, EXIT FAILURE MODE",
        _usage(EXIT_FAILURE_MODE, 0),
        now=_exit_failure_mode,
        access=Access.WRITE,
        during_sanitize=True,
    ),
}
