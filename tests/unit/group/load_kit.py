"""Load reports for tests, made of few words."""

from collections.abc import Mapping

from san_target.group.decisions import View
from san_target.group.efficiency import model_of
from san_target.peer.load_report import MemberLoad, SessionLoad

GIB = 1 << 30


def session(
    name: str,
    iops: float = 1000.0,
    owners: Mapping[str, float] | None = None,
    *,
    volume: str = "",
    initiator: str = "",
    age_s: float = 1000.0,
    depth: float = 1.0,
    held: str = "",
) -> SessionLoad:
    """A session of 4 KiB reads, on a volume of its own unless told otherwise."""
    return SessionLoad(
        name,
        volume or f"v-{name}",
        volume or f"v-{name}",
        initiator or f"iqn.2026-01.x:{name}",
        "00023d000001",
        age_s,
        iops,
        iops * 4096,
        depth,
        1.0,
        0.0,
        dict(owners or {}),
        held,
    )


def load(
    member: str,
    *sessions: SessionLoad,
    cpu: float = 0.0,
    free: int = 50 * GIB,
    capacity: int = 100 * GIB,
    number: int = 1,
    limit: float = 1.0,
) -> MemberLoad:
    """cpu 0: as the model works it out. limit: of one CPU, what it may use."""
    return MemberLoad(
        member,
        1,
        number,
        len(sessions),
        sum(one.iops for one in sessions),
        owned_iops=sum(one.iops for one in sessions),
        cpu_share=cpu,
        pool_capacity_bytes=capacity,
        pool_free_bytes=free,
        details=sessions,
        cpu_limit=limit,
    )


def view(*loads: MemberLoad, now_s: float = 10_000.0, leaving: frozenset[str] = frozenset()) -> View:
    by_name = {one.member: one for one in loads}
    return View(now_s, by_name, model_of(by_name), frozenset(by_name), leaving)
