"""Commands to a logical unit number that the target does not have (SAM-5 4.12, SPC-4 6.6.1, 6.33, 6.39)."""

from collections.abc import Sequence

from san_target.scsi.command import Command, Outcome
from san_target.scsi.inquiry import inquiry_without_unit
from san_target.scsi.reports import report_luns_of_target
from san_target.scsi.sense import LOGICAL_UNIT_NOT_SUPPORTED, CheckCondition


def execute_without_unit(command: Command, target_names: Sequence[str]) -> Outcome:
    """The three commands that any number answers; LOGICAL UNIT NOT SUPPORTED for all others.

    target_names: the target that was asked (each has LUN 0 alone, so they do not change the answer).
    """
    cdb = command.cdb
    try:
        match cdb[0]:
            case 0x12:
                return inquiry_without_unit(cdb)
            case 0xA0:
                return report_luns_of_target(cdb)
            case 0x03:
                data = CheckCondition(LOGICAL_UNIT_NOT_SUPPORTED).sense(bool(cdb[1] & 1))
                return Outcome(data_in=data[: cdb[4]])
            case _:
                raise CheckCondition(LOGICAL_UNIT_NOT_SUPPORTED)
    except CheckCondition as error:
        return error.outcome(command.nexus.d_sense)
