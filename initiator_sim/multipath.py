"""Several paths to one disk, used in turn; a path that is lost hands its commands to the others."""

from initiator_sim.path import Path
from initiator_sim.task import Task


class Multipath:
    """Round-robin over the paths that are up. With none up, commands wait for the first that comes back.

    A command that was in flight on a lost path is sent again on another one: its writer must allow for both having
    been executed.
    """

    def __init__(self, paths: list[Path]) -> None:
        if not paths:
            raise ValueError("at least one path")
        self.paths = paths
        self._turn = 0
        if len(paths) > 1:
            for path in paths:
                path.on_down = self._take_over

    def choose(self) -> Path | None:
        """The next path that is up; None if none is."""
        count = len(self.paths)
        for step in range(count):
            path = self.paths[(self._turn + step) % count]
            if path.up:
                self._turn = (self._turn + step + 1) % count
                return path
        return None

    def submit(self, task: Task) -> None:
        (self.choose() or self._best()).submit(task)

    def _best(self) -> Path:
        """Where a command waits while all are down: at one that may come back."""
        return next((path for path in self.paths if path.failed is None), self.paths[0])

    def _take_over(self, lost: Path, tasks: list[Task]) -> None:
        for task in tasks:
            self.submit(task)
