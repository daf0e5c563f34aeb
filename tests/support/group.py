"""Several members of san-target as one group: real processes that share a store, on free ports of this machine.

Each member is a `Member` of its own, to be killed, stopped and started by itself. With a `Network` each of them has an
address and a network of its own, of which cables can be cut.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from tests.support.member import COMMAND, Member
from tests.support.network import Network
from tests.support.target import PLAIN, Options, Volume, free_port, wait_for

LINKED_TIMEOUT_S = 30
TOKEN = "the-operator-of-this-group"


class GroupMember(Member):
    """One of them. host, prefix: its address in a network of its own, and what runs a command there."""

    def __init__(
        self,
        directory: Path,
        member_name: str,
        store_url: str,
        *options: str,
        host: str = "127.0.0.1",
        prefix: Sequence[str] = (),
    ) -> None:
        super().__init__(directory, *options)
        self.member_name = member_name
        self._store_url = store_url
        self._prefix = list(prefix)
        self.token_file = directory / "token"
        self.token_file.write_text(TOKEN)
        self.token_file.chmod(0o600)
        self.portal, self.peer, self.admin = (f"{host}:{free_port()}" for _ in range(3))

    def _command(self) -> Sequence[str]:
        ports = ["--portal", self.portal, "--peer", self.peer, "--admin", self.admin]
        where = ["--dir", str(self.pool), "--store", self._store_url, "--api-token-file", str(self.token_file)]
        return [*self._prefix, str(COMMAND), "serve", "--name", self.member_name, *where, *ports, *self._options]

    def _words(self, arguments: Sequence[str]) -> list[str]:
        return [str(COMMAND), "--api", self.api, "--token-file", str(self.token_file), *arguments]

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {TOKEN}"}

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def pause(self) -> None:
        """SIGSTOP; returns when every thread stands still."""
        os.kill(self.pid, signal.SIGSTOP)
        tasks = Path(f"/proc/{self.pid}/task")

        def is_stopped() -> bool:
            return all(stat.read_text().rpartition(") ")[2].startswith("T") for stat in tasks.glob("*/stat"))

        wait_for(is_stopped, 10, f"stop of {self.member_name}")

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        if self.runs:
            self.resume()
        super().kill()


class Group:
    """`count` members with one store, named m1, m2, ...; nothing runs until `start`.

    store_url: a SQLite file in `directory` unless told otherwise. options: of `san-target serve`, for each member.
    """

    def __init__(
        self,
        directory: Path,
        count: int = 3,
        store_url: str | None = None,
        network: Network | None = None,
        options: Sequence[str] = (),
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.network = network
        self.store_url = store_url or f"sqlite://{directory.resolve()}/group.sqlite"
        self.members = [self._member(directory, index, options) for index in range(count)]

    def _member(self, directory: Path, index: int, options: Sequence[str]) -> GroupMember:
        name = f"m{index + 1}"
        if self.network is None:
            return GroupMember(directory / name, name, self.store_url, *options)
        host, prefix = self.network.address(index), self.network.prefix(index)
        return GroupMember(directory / name, name, self.store_url, *options, host=host, prefix=prefix)

    def __getitem__(self, index: int) -> GroupMember:
        return self.members[index]

    def __iter__(self) -> Iterator[GroupMember]:
        return iter(self.members)

    @property
    def store(self) -> str:
        """The kind of its store."""
        return self.store_url.partition(":")[0]

    @property
    def portals(self) -> tuple[str, ...]:
        return tuple(member.portal for member in self.members)

    def start(self) -> None:
        """All at once, as after a power failure; returns when all serve."""
        with ThreadPoolExecutor(len(self.members)) as pool:
            list(pool.map(GroupMember.start, self.members))

    def kill(self) -> None:
        for member in self.members:
            member.kill()

    def repair(self) -> None:
        """All serve again, and no cable is cut."""
        if self.network is not None:
            self.network.heal()
        for member in self.members:
            if member.runs:
                member.resume()
            else:
                member.start()
        self.wait_until_active()

    def diagnosis(self) -> str:
        """The ends of all logs, for the report of a failed test."""
        return "\n".join(f"---- {member.member_name}\n{member.log[-8000:]}" for member in self.members)

    def by_name(self, name: str) -> GroupMember:
        return next(member for member in self.members if member.member_name == name)

    def any_running(self) -> GroupMember:
        return next(member for member in self.members if member.runs)

    def wait_until_active(self) -> None:
        """Until each member sees all others as serving."""
        for member in self.members:
            wait_for(
                lambda: all(one["state"] == "active" for one in member.ask("GET", "/members")),  # noqa: B023
                LINKED_TIMEOUT_S,
                f"{member.member_name} sees the others",
            )

    # --- volumes --------------------------------------------------------------------------------------------------

    def create_volume(
        self, name: str, size_bytes: int, options: Options = PLAIN, *words: str, members: str = ""
    ) -> Volume:
        """A volume, a part of it on each member, or on these (names with commas); returns when all members serve it.

        words: further options of the command.
        """
        members = members or ",".join(member.member_name for member in self.members)
        volume = self.members[0].create_volume(name, size_bytes, options, "--members", members, *words)
        for member in self.members:
            wait_for(lambda: self._serves(member, name), LINKED_TIMEOUT_S, f"{member.member_name} serves {name}")  # noqa: B023
        return volume

    @staticmethod
    def _serves(member: GroupMember, name: str) -> bool:
        return any(one["name"] == name and one["state"] == "ready" for one in member.ask("GET", "/volumes"))

    def at(self, volume: Volume, index: int) -> Volume:
        """The same volume through another member."""
        return replace(volume, portal=self.members[index].portal)

    def owners(self, volume: Volume, asked: GroupMember | None = None) -> dict[str, list[range]]:
        """The blocks of each member, by its name, as one of them knows (any that runs)."""
        owners: dict[str, list[range]] = {}
        for entry in (asked or self.any_running()).ask("GET", f"/volumes/{volume.name}/map"):
            owners.setdefault(entry["owner"], []).append(range(entry["start_lba"], entry["end_lba"]))
        return owners

    def set_policy(self, policy: str) -> None:
        """How logins are spread; returns when each member knows it."""
        self.members[0].check("portal", "set", "--policy", policy)
        for member in self.members:
            wait_for(
                lambda: member.ask("GET", "/group")["policy"] == policy,  # noqa: B023
                LINKED_TIMEOUT_S,
                f"{member.member_name} knows the policy",
            )


@contextlib.contextmanager
def running(group: Group) -> Iterator[Group]:
    """The group from when all its members see each other to its end."""
    try:
        group.start()
        group.wait_until_active()
        yield group
    finally:
        group.kill()
