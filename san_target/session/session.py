"""A session: an initiator logged in to a target (or to discovery), and what is counted of it."""

from typing import TYPE_CHECKING

from san_target.scsi.command import CHECK_CONDITION, GOOD

if TYPE_CHECKING:
    from san_target.scsi.command import Outcome
    from san_target.scsi.nexus import Nexus
    from san_target.session.connection import Connection
    from san_target.session.parameters import Parameters
    from san_target.session.target import Target
    from san_target.session.tasks import Task


class Counters:
    """Plain ints, read by metrics and listings; they only grow."""

    __slots__ = ("bytes_read", "bytes_written", "commands", "errors", "reads", "rejects", "writes")

    def __init__(self) -> None:
        self.commands = 0
        self.reads = 0
        self.writes = 0
        self.bytes_read = 0
        self.bytes_written = 0
        self.errors = 0
        self.rejects = 0

    def count(self, task: "Task", outcome: "Outcome") -> None:
        """A command that has ended, as it was answered."""
        if outcome.status != GOOD:
            self.errors += outcome.status == CHECK_CONDITION
        elif task.write_expected:
            self.writes += 1
            self.bytes_written += min(task.write_wanted, task.write_expected)
        elif task.read_expected:
            self.reads += 1
            self.bytes_read += min(memoryview(outcome.data_in).nbytes, task.read_expected)


class PortalCounters:
    """What all connections of a member count together, also those that never became a session; plain ints.

    logins: to targets and to discovery; login_failures: refused, given up or timed out; redirections: sent elsewhere
    """

    __slots__ = ("digest_errors", "login_failures", "logins", "redirections", "rejects", "task_management")

    def __init__(self) -> None:
        self.logins = 0
        self.login_failures = 0
        self.redirections = 0
        self.rejects = 0
        self.digest_errors = 0
        self.task_management = 0


class Session:
    """One session with its only connection (MaxConnections = 1, so both end together).

    target and nexus are None for a discovery session. since_s: monotonic seconds of the login.
    """

    __slots__ = (
        "address",
        "connection",
        "counters",
        "initiator_alias",
        "initiator_name",
        "isid",
        "nexus",
        "parameters",
        "since_s",
        "target",
        "tsih",
        "user",
    )

    def __init__(
        self,
        connection: "Connection",
        initiator_name: str,
        isid: bytes,
        tsih: int,
        target: "Target | None",
        nexus: "Nexus | None",
        parameters: "Parameters",
        address: str,
        since_s: float,
    ) -> None:
        self.connection = connection
        self.initiator_name = initiator_name
        self.initiator_alias = ""
        self.isid = isid
        self.tsih = tsih
        self.target = target
        self.nexus = nexus
        self.parameters = parameters
        self.address = address
        self.since_s = since_s
        self.user = ""
        self.counters = Counters()

    @property
    def id(self) -> str:
        """The name of this session in listings; unique on this member."""
        return str(self.tsih)

    @property
    def key(self) -> tuple[str, bytes]:
        return (self.initiator_name, self.isid)
