"""Several paths to one disk, used in turn; a path that is lost hands its commands to the others."""

from collections import deque

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
        self._waiting: deque[Task] = deque()
        if len(paths) > 1:
            for path in paths:
                path.on_down = self._take_over
                path.on_change = self._changed

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
        """Send a task on one of the paths; with all of them over it ends with Failure.PATH_LOST."""
        path = self.choose()
        if path is None and (len(self.paths) == 1 or all(each.is_over for each in self.paths)):
            path = self.paths[0]
        if path is None:
            self._waiting.append(task)
        else:
            path.submit(task)

    def _changed(self, path: Path) -> None:
        if path.up or all(each.is_over for each in self.paths):
            for _ in range(len(self._waiting)):
                self.submit(self._waiting.popleft())

    def _take_over(self, lost: Path, tasks: list[Task]) -> None:
        for task in tasks:
            self.submit(task)
