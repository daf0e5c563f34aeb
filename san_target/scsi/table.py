"""Every command this target knows, in one table, and with each the rule when it may run."""

from typing import Final

from san_target.scsi.copy_results import COPY_OPERATIONS
from san_target.scsi.medium import MEDIUM_OPERATIONS
from san_target.scsi.operation import Operations
from san_target.scsi.persistent_in import PERSISTENT_OPERATIONS
from san_target.scsi.persistent_out import RESERVE_6_OPERATIONS
from san_target.scsi.provisioning import PROVISIONING_OPERATIONS
from san_target.scsi.read_write import READ_WRITE_OPERATIONS
from san_target.scsi.reports import REPORT_OPERATIONS
from san_target.scsi.sanitize import SANITIZE_OPERATIONS
from san_target.scsi.verify import VERIFY_OPERATIONS

OPERATIONS: Final[Operations] = {
    **REPORT_OPERATIONS,
    **MEDIUM_OPERATIONS,
    **READ_WRITE_OPERATIONS,
    **VERIFY_OPERATIONS,
    **PROVISIONING_OPERATIONS,
    **PERSISTENT_OPERATIONS,
    **RESERVE_6_OPERATIONS,
    **COPY_OPERATIONS,
    **SANITIZE_OPERATIONS,
}

WRITE_ATOMIC_16: Final = (0x9C, None)


def operations_for(atomic_blocks_max: int) -> Operations:
    """The table of one unit: a device that cannot write atomically has no WRITE ATOMIC."""
    if atomic_blocks_max:
        return dict(OPERATIONS)
    return {key: operation for key, operation in OPERATIONS.items() if key != WRITE_ATOMIC_16}
