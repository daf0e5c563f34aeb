"""The PDU trace: bounded, ends by itself, readable, and unmoved by foreign bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from san_target.admin.service import Session
from san_target.admin.trace import ENTRIES_MAX, PAGE_ENTRIES_MAX, TRACES_MAX, Ring, Tracer
from san_target.admin.trace_text import PDU_NAMES, describe
from san_target.group.errors import Conflict, NotFound
from san_target.wire import opcodes, pdus
from tests.unit.admin.client import AppClient
from tests.unit.admin.fake_service import FakeService

READ = pdus.build(
    opcodes.SCSI_COMMAND,
    final=True,
    read=True,
    initiator_task_tag=5,
    expected_data_transfer_length=4096,
    cmd_sn=7,
    cdb=bytes.fromhex("28000000001000000800") + bytes(6),
)


class Clock:
    """A clock that stands still until told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def session(service: FakeService) -> Session:
    return service.log_in("disk")


@pytest.fixture
def tracer(service: FakeService, clock: Clock) -> Tracer:
    return Tracer(service, clock, lambda: 0.0)


def test_pdus_are_kept_in_order_and_made_readable(tracer: Tracer, service: FakeService, session: Session) -> None:
    assert tracer.start(session.id, 10).active
    sink = service.sinks[session.id]
    sink("received", READ)
    sink("sent", pdus.build(opcodes.SCSI_RESPONSE, initiator_task_tag=5, stat_sn=9))
    trace = tracer.read(session.id, 0)
    assert [(one.number, one.direction, one.pdu) for one in trace.entries] == [
        (1, "received", "SCSI Command"),
        (2, "sent", "SCSI Response"),
    ]
    assert trace.entries[0].text == (
        "final read itt=0x00000005 expected=4096 cmd_sn=7 cdb=28000000001000000800000000000000"
    )
    assert trace.entries[0].time == "1970-01-01T00:00:00.000000Z"
    assert (trace.next, trace.dropped, trace.seconds_left) == (2, 0, 10.0)
    assert tracer.read(session.id, trace.next).entries == ()


def test_headers_are_copied_from_reused_buffers(tracer: Tracer, service: FakeService, session: Session) -> None:
    buffer = bytearray(READ + b"data that must not be kept")
    tracer.start(session.id, 10)
    service.sinks[session.id]("received", memoryview(buffer))  # type: ignore[arg-type]
    buffer[:] = bytes(len(buffer))
    assert tracer.read(session.id, 0).entries[0].pdu == "SCSI Command"


def test_trace_ends_by_itself(tracer: Tracer, service: FakeService, session: Session, clock: Clock) -> None:
    tracer.start(session.id, 10)
    sink = service.sinks[session.id]
    sink("received", READ)
    clock.now += 10
    sink("received", READ)
    assert service.sinks == {}
    trace = tracer.read(session.id, 0)
    assert (trace.active, trace.seconds_left, len(trace.entries)) == (False, 0.0, 1)


def test_silent_session_ends_its_trace_at_the_next_look(
    tracer: Tracer, service: FakeService, session: Session, clock: Clock
) -> None:
    tracer.start(session.id, 10)
    clock.now += 11
    assert not tracer.read(session.id, 0).active
    assert service.sinks == {}


def test_stop_keeps_what_was_seen(tracer: Tracer, service: FakeService, session: Session) -> None:
    tracer.start(session.id, 10)
    service.sinks[session.id]("received", READ)
    tracer.stop(session.id)
    tracer.stop(session.id)
    assert service.sinks == {}
    assert len(tracer.read(session.id, 0).entries) == 1


def test_starting_anew_forgets_the_old_entries(tracer: Tracer, service: FakeService, session: Session) -> None:
    tracer.start(session.id, 10)
    old_sink = service.sinks[session.id]
    old_sink("received", READ)
    tracer.start(session.id, 20)
    assert tracer.read(session.id, 0).entries == ()
    service.sinks[session.id]("sent", READ)
    assert [one.direction for one in tracer.read(session.id, 0).entries] == ["sent"]


def test_end_of_an_old_trace_leaves_the_new_one_on(
    tracer: Tracer, service: FakeService, session: Session, clock: Clock
) -> None:
    tracer.start(session.id, 10)
    old_sink = service.sinks[session.id]
    tracer.start(session.id, 100)
    clock.now += 50
    old_sink("received", READ)
    assert session.id in service.sinks


def test_ring_is_bounded_and_says_what_it_lost() -> None:
    ring = Ring(ends_at=0)
    for _ in range(ENTRIES_MAX + 10):
        ring.add(0.0, "sent", READ)
    assert len(ring.entries) == ENTRIES_MAX
    page, dropped = ring.page(4)
    assert (page[0][0], len(page), dropped) == (11, PAGE_ENTRIES_MAX, 6)
    assert ring.page(ENTRIES_MAX + 10) == ([], 0)
    assert ring.page(ENTRIES_MAX + 99) == ([], 0)


@given(st.integers(0, ENTRIES_MAX * 2), st.integers(0, ENTRIES_MAX * 3))
def test_pages_are_gap_free(added: int, after: int) -> None:
    ring = Ring(ends_at=0)
    ring.count = max(0, added - ENTRIES_MAX)
    ring.entries.extend((0.0, "sent", READ) for _ in range(min(added, ENTRIES_MAX)))
    ring.count = added
    page, dropped = ring.page(after)
    numbers = [entry[0] for entry in page]
    expected_first = after + dropped + 1
    assert numbers == list(range(expected_first, expected_first + len(numbers)))
    assert bool(numbers) == (after < added)


def test_unknown_sessions(tracer: Tracer) -> None:
    with pytest.raises(NotFound):
        tracer.start("m1-9", 10)
    with pytest.raises(NotFound):
        tracer.read("m1-9", 0)
    with pytest.raises(NotFound):
        tracer.stop("m1-9")


def test_number_of_traces_is_bounded(tracer: Tracer, service: FakeService) -> None:
    ids = [service.log_in("disk").id for _ in range(TRACES_MAX + 1)]
    for session_id in ids[:-1]:
        tracer.start(session_id, 10)
    with pytest.raises(Conflict):
        tracer.start(ids[-1], 10)
    tracer.stop(ids[3])
    assert tracer.start(ids[-1], 10).active
    with pytest.raises(NotFound):
        tracer.read(ids[3], 0)


def test_trace_over_the_api(client: AppClient, service: FakeService, session: Session) -> None:
    path = f"/api/v1/sessions/{session.id}/trace"
    assert client.get(path).status_code == 404
    assert client.post(path, json={"seconds": 30}).status_code == 201
    service.sinks[session.id]("received", READ)
    trace = client.get(f"{path}?after=0").json()
    assert trace["entries"][0]["pdu"] == "SCSI Command"
    assert client.get(f"{path}?after={trace['next']}").json()["entries"] == []
    assert client.delete(path).status_code == 204
    assert not client.get(path).json()["active"]


def test_every_pdu_has_a_name() -> None:
    assert PDU_NAMES.keys() == pdus.SPECS.keys()
    for opcode, name in PDU_NAMES.items():
        assert describe(pdus.build(opcode))[0] == name


@given(st.binary(max_size=64))
def test_any_bytes_are_described(header: bytes) -> None:
    name, text = describe(header)
    assert name in {*PDU_NAMES.values(), "unknown"}
    assert text.isprintable()
