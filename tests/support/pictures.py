"""The pictures of docs/initiator-sim.md, made by the program itself at a real member.

    python -m tests.support.pictures [--directory docs/images]      needs the extra `plot`

Twelve seconds of verified load by four sessions; after four seconds two connections are cut, after eight the others.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import tempfile
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from initiator_sim import plot
from initiator_sim.fleet import Assignment, Fleet
from initiator_sim.measure import Interval
from initiator_sim.personalities import OPEN_ISCSI
from initiator_sim.view import LiveView
from initiator_sim.workload import Plan
from tests.support.member import Member
from tests.support.target import Volume

SECONDS = 12.0
PICTURE_AT_S = 10.0
CUTS_S = (4.0, 8.0)
COLUMNS, ROWS = 100, 24
IMAGES = Path(__file__).resolve().parents[2] / "docs" / "images"


async def draw(volume: Volume, directory: Path) -> None:
    fleet = Fleet(
        Assignment(
            (volume.portal,),
            volume.iqn,
            Plan("randrw", depth=8),
            personality=replace(OPEN_ISCSI, obeys_time2wait=False),
            sessions=4,
            seconds=SECONDS,
            verify=True,
            strict=True,
        )
    )
    paper = Console(record=True, width=COLUMNS, height=ROWS, file=io.StringIO(), force_terminal=True)
    drawn: list[float] = []

    with LiveView(fleet, Console(stderr=True)) as view:

        def interval(one: Interval) -> None:
            view.interval(one)
            if one.at_s >= PICTURE_AT_S and not drawn:
                drawn.append(one.at_s)
                paper.print(view.render())
                paper.save_svg(str(directory / "initiator-sim-live.svg"), title="initiator-sim run --verify")

        running = asyncio.ensure_future(fleet.run(interval))
        before_s = 0.0
        for number, at_s in enumerate(CUTS_S):
            await asyncio.sleep(at_s - before_s)
            before_s = at_s
            for path in fleet.paths[number::2]:
                path.drop_connection()
        await running
    plot.plot(fleet.report(), directory / "initiator-sim-plot.svg")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, default=IMAGES)
    directory: Path = parser.parse_args().directory
    with tempfile.TemporaryDirectory() as place:
        member = Member(Path(place) / "member")
        try:
            member.start()
            asyncio.run(draw(member.create_volume("demo", 64 << 20), directory))
        finally:
            member.kill()


if __name__ == "__main__":
    main()
