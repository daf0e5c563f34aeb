"""What a connection sends at the end of a SCSI command: Data-In PDUs and the SCSI Response, with residuals. Pure."""

from typing import TYPE_CHECKING

from san_target.scsi.command import GOOD, Outcome
from san_target.session.sequencing import Sequencer
from san_target.session.transfer import residual_of, segments
from san_target.wire import hot
from san_target.wire.opcodes import FINAL

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from san_target.session.tasks import Task


class Responses(Sequencer):
    """The answering half of a connection."""

    def respond(self, task: "Task", outcome: Outcome) -> None:
        """Data-In and SCSI Response with residuals (RFC 7143 11.4.5, 11.7)."""
        if outcome.status == GOOD and self._respond_plainly(task, outcome.data_in):
            return
        data = memoryview(outcome.data_in)
        to_send = min(len(data), task.read_expected)
        flags, residual = _residual(task, len(data))
        # A bidirectional command reports two residuals, which only a SCSI Response can carry.
        collapse = outcome.status == GOOD and not (task.write_expected and task.read_expected)
        data_in_count = 0
        for segment in segments(
            to_send, self.parameters.max_send_data_segment_length, self.parameters.max_burst_length
        ):
            data_in_count += 1
            with_status = collapse and segment.last
            self.send(
                hot.pack_data_in(
                    (FINAL if segment.final else 0) | (hot.STATUS_PRESENT | flags if with_status else 0),
                    outcome.status if with_status else 0,
                    segment.length,
                    task.itt,
                    self.take_stat_sn() if with_status else self.stat_sn,
                    self.exp_cmd_sn,
                    self.max_cmd_sn,
                    segment.data_sn,
                    segment.offset,
                    residual if with_status else 0,
                ),
                data[segment.offset : segment.offset + segment.length],
            )
        if data_in_count and collapse:
            return
        bidirectional = 0
        if task.write_expected and task.read_expected:
            read_flags, bidirectional = residual_of(len(data), task.read_expected)
            flags |= read_flags << 2
        sense = len(outcome.sense).to_bytes(2, "big") + outcome.sense if outcome.sense else b""
        self.send(
            hot.pack_scsi_response(
                task.itt,
                self.take_stat_sn(),
                self.exp_cmd_sn,
                self.max_cmd_sn,
                status=outcome.status,
                flags=flags,
                data_segment_length=len(sense),
                exp_data_sn=data_in_count or (task.transfer.r2t_count if task.transfer is not None else 0),
                bidirectional_residual=bidirectional,
                residual=residual,
            ),
            sense,
        )

    def _respond_plainly(self, task: "Task", data: "Buffer") -> bool:
        """The one PDU that most commands end with; False: this one needs more than that."""
        if self.header_digest or self.data_digest or self.trace is not None:
            return False
        view = memoryview(data)
        size = view.nbytes
        if size:
            one_pdu = min(self.parameters.max_send_data_segment_length, self.parameters.max_burst_length)
            if task.write_expected or task.write_wanted or size != task.read_expected or size > one_pdu or size & 3:
                return False
            numbers = task.itt, self.take_stat_sn(), self.exp_cmd_sn, self.max_cmd_sn
            self.outgoing += (hot.pack_read_answer(size, *numbers), view)
        else:
            if task.read_expected or task.write_expected != task.write_wanted or task.transfer is not None:
                return False
            numbers = task.itt, self.take_stat_sn(), self.exp_cmd_sn, self.max_cmd_sn
            self.outgoing.append(hot.pack_good_response(*numbers))
        self.answers += 1
        return True


def _residual(task: "Task", data_in_bytes: int) -> tuple[int, int]:
    """The residual of the write direction if there is one, else of the read direction."""
    if task.write_expected or task.write_wanted:
        return residual_of(task.write_wanted, task.write_expected)
    return residual_of(data_in_bytes, task.read_expected)
