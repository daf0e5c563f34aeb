"""What is done to a group while its volumes are in use: migrations, moves of sessions, drains and removals, kills.

Each of these returns when it is over, and raises AssertionError when it does not come to that; how the load takes it is
the matter of the test. All is asked of a member that runs.
"""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tests.support.group import Group, GroupMember
from tests.support.group_trial import FIGURES
from tests.support.target import Volume, wait_for

MIB = 1 << 20
PATIENCE_S = 90
# So slowly that there is time to kill somebody in the midst of it.
SLOWLY = 6 * MIB
CALM_S = 2.0
AFTERWARDS_S = 0.5


def start_migration(group: Group, volume: Volume, destination: str, limit_bytes_per_second: int = 0) -> list[str]:
    """All of a volume to one member; the ids."""
    body = {"volume": volume.name, "to": destination, "limit_bytes_per_second": limit_bytes_per_second}
    return [each["id"] for each in group.any_running().ask("POST", "/migrations", body)]


def shown(group: Group, ids: Sequence[str]) -> list[dict[str, Any]]:
    """Those migrations, as they are now."""
    return [each for each in group.any_running().ask("GET", "/migrations") if each["id"] in ids]


def wait_until_done(group: Group, ids: Sequence[str]) -> None:
    wait_for(lambda: all(each["state"] == "done" for each in shown(group, ids)), PATIENCE_S, "the end of migrations")


def wait_until_begun(group: Group, ids: Sequence[str]) -> None:
    """Until one has moved some pieces; AssertionError if it has moved all."""
    wait_for(lambda: any(each["pieces_done"] > 1 for each in shown(group, ids)), PATIENCE_S, "some pieces")
    assert any(each["pieces_done"] > 1 and each["state"] != "done" for each in shown(group, ids)), shown(group, ids)


def wait_until_at(group: Group, volumes: Sequence[Volume], member: str) -> None:
    """Until that member has all of these, by the map of every member that runs."""
    for each in group:
        for volume in volumes if each.runs else ():
            wait_for(lambda: group.owners(volume, each).keys() == {member}, PATIENCE_S, f"{volume.name} at {member}")  # noqa: B023


def migrate(group: Group, volumes: Sequence[Volume], destination: str) -> None:
    """All of these volumes, at the same time, to one member, as fast as it goes."""
    wait_until_done(group, [each for volume in volumes for each in start_migration(group, volume, destination)])
    wait_until_at(group, volumes, destination)


def bring(group: Group, volumes: Sequence[Volume], member: str) -> None:
    """To one member, what is not all there."""
    migrate(group, [volume for volume in volumes if group.owners(volume).keys() != {member}], member)


def owner_of(group: Group, volume: Volume) -> str:
    """The one member that has all of it."""
    (owner,) = group.owners(volume)
    return owner


def others(group: Group, *names: str) -> list[str]:
    """The other members."""
    return [member.member_name for member in group if member.member_name not in names]


def kill_in_mid_migration(group: Group, volumes: Sequence[Volume], destination: str, killed: str) -> None:
    """These volumes go to a member; when some of it is there a member is killed (SIGKILL) and started again, and it
    goes on by itself to its end."""
    ids = [each for volume in volumes for each in start_migration(group, volume, destination, SLOWLY)]
    wait_until_begun(group, ids)
    group.by_name(killed).kill()
    group.by_name(killed).start()
    wait_until_done(group, ids)
    wait_until_at(group, volumes, destination)


def session_of(group: Group, volume: Volume) -> dict[str, Any]:
    """The only session of a volume; waited for, as its initiator may be about to come back."""
    found: list[dict[str, Any]] = []

    def is_there() -> bool:
        found[:] = [each for each in group.any_running().ask("GET", "/sessions") if each["volume"] == volume.name]
        return len(found) == 1

    wait_for(is_there, PATIENCE_S, f"the session of {volume.name}")
    return found[0]


def move_session(group: Group, volume: Volume, to: str) -> None:
    """To a member, unless it is there; its initiator obeys."""
    session = session_of(group, volume)
    if session["member"] == to:
        return
    moved = group.any_running().ask("POST", f"/sessions/{session['id']}/move", {"to": to})
    assert (moved["member"], moved["dropped"]) == (to, False), moved
    assert session_of(group, volume)["member"] == to


def move_session_around(group: Group, volume: Volume, times: int) -> None:
    """From member to member, so many times."""
    for number in range(times):
        elsewhere = others(group, session_of(group, volume)["member"])
        move_session(group, volume, elsewhere[number % len(elsewhere)])


def drain_and_remove(group: Group, name: str) -> None:
    """A member gives all that it has to the others, is removed, and ends by itself."""
    asked = next(member for member in group if member.member_name != name)
    asked.ask("POST", f"/members/{name}/drain")
    wait_for(lambda: bool(asked.ask("GET", f"/members/{name}/drain")["done"]), PATIENCE_S, f"the drain of {name}")
    drained = asked.ask("GET", f"/members/{name}/drain")
    assert (drained["left"], drained["migrating"], drained["sessions"]) == ([], [], []), drained
    assert asked.ask("DELETE", f"/members/{name}")["lost"] == []
    wait_for(lambda: not group.by_name(name).runs, PATIENCE_S, f"the end of {name}")


def join_again(member: GroupMember) -> None:
    """A removed member, with a new pool, as a new one."""
    member.kill()
    shutil.rmtree(member.pool)
    member.start()


# --- How long the load had to wait ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Times:
    """Of an upheaval under load, by time.monotonic(): CALM_S before it, its beginning and its end."""

    calm_s: float
    begun_s: float
    over_s: float


def undergo(upheaval: Callable[[], None]) -> Times:
    """Carry it out, with some quiet work before and after it."""
    calm_s = time.monotonic()
    time.sleep(CALM_S)
    begun_s = time.monotonic()
    upheaval()
    over_s = time.monotonic()
    time.sleep(AFTERWARDS_S)
    return Times(calm_s, begun_s, over_s)


def longest_pause_s(ends_s: Sequence[float], since_s: float, until_s: float) -> float:
    """The longest time between two operations that ended one after the other, if some of it lies in [since, until]."""
    return max(
        (after - before for before, after in itertools.pairwise(ends_s) if after > since_s and before < until_s),
        default=until_s - since_s,
    )


def tell_pause(load: str, what: str, ends_s: Sequence[float], times: Times) -> None:
    """Note the longest pause of a load whose operations ended at these times; it worked before, during and after."""
    assert sum(times.begun_s < end_s < times.over_s for end_s in ends_s) > 5, "nothing was done meanwhile"
    assert ends_s[-1] > times.over_s, "nothing was done afterwards"
    during_s = longest_pause_s(ends_s, times.begun_s, times.over_s)
    before_s = longest_pause_s(ends_s, times.calm_s, times.begun_s)
    FIGURES.append(
        f"{what}, {load}: longest pause {during_s:.2f} s in {times.over_s - times.begun_s:.0f} s; "
        f"{before_s:.2f} s in the {times.begun_s - times.calm_s:.0f} s before"
    )
