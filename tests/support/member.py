"""A member of san-target as its operator runs it: `san-target serve` and the other commands, as processes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx

from tests.support.target import PLAIN, START_TIMEOUT_S, Chap, Options, Target, Volume, free_port

COMMAND = Path(sys.executable).with_name("san-target")


class Member(Target):
    """One member on free loopback ports. Its log is in `directory`; pool and store are too, unless told otherwise."""

    name = "san-target"

    def __init__(self, directory: Path, *options: str, pool: Path | None = None, store: Path | None = None) -> None:
        super().__init__(directory)
        self._options = options
        self.peer = f"127.0.0.1:{free_port()}"
        self.admin = f"127.0.0.1:{free_port()}"
        self.pool = pool or directory / "pool"
        self.store = store or directory / "store.db"

    @property
    def api(self) -> str:
        return f"http://{self.admin}"

    def _command(self) -> Sequence[str]:
        ports = ["--portal", self.portal, "--peer", self.peer, "--admin", self.admin]
        where = ["--dir", str(self.pool), "--store", f"sqlite://{self.store.resolve()}"]
        return [str(COMMAND), "serve", "--name", "m0", *where, *ports, *self._options]

    def _is_ready(self) -> bool:
        return any(line.split()[:1] == ["ready"] for line in self.log_since_start().splitlines())

    def refusal(self) -> str:
        """Start it where it must not start: its only line, after an end with status 1 and no word on stdout."""
        done = subprocess.run(
            self._command(),
            capture_output=True,
            text=True,
            timeout=START_TIMEOUT_S,
            env=self._environment(),
            check=False,
        )
        assert done.returncode == 1, f"status {done.returncode}; stdout:\n{done.stdout}\nstderr:\n{done.stderr}"
        assert done.stdout == "", done.stdout
        assert done.stderr.count("\n") == 1, f"more than a line:\n{done.stderr}"
        assert done.stderr.startswith("san-target: "), done.stderr
        return done.stderr.strip()

    def command(self, *arguments: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a `san-target` command against this member's API; any exit status."""
        return subprocess.run(self._words(arguments), capture_output=True, text=True, timeout=timeout_s, check=False)

    def _words(self, arguments: Sequence[str]) -> list[str]:
        """The command line of a `san-target` command."""
        return [str(COMMAND), "--api", self.api, *arguments]

    def check(self, *arguments: str) -> str:
        """The output of a `san-target` command that must succeed."""
        done = self.command(*arguments)
        assert done.returncode == 0, f"san-target {' '.join(arguments)}: status {done.returncode}\n{done.stderr}"
        return done.stdout

    def json(self, *arguments: str) -> Any:
        """The document that a command prints with --json."""
        return json.loads(self.check(*arguments, "--json"))

    def ask(self, method: str, path: str, body: object = None) -> Any:
        """The answer of the HTTP API, which must be a success; `path` begins after the version. None if it is empty.

        Quicker than a command. httpx.TransportError: the member is gone.
        """
        url = f"{self.api}/api/v1{path}"
        answer = httpx.request(method, url, json=body, headers=self._headers(), timeout=60, trust_env=False)
        assert answer.status_code < 300, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json() if answer.content else None

    def _headers(self) -> dict[str, str]:
        """What requests to the API carry."""
        return {}

    def create_volume(self, name: str, size_bytes: int, options: Options = PLAIN, *more: str) -> Volume:
        """more: further options of `san-target volume create`."""
        words = [*more, "--size", str(size_bytes), "--block-size", str(options.block_size)]
        words += ["--chap", self._credentials(name, options.chap)] if options.chap else []
        words += ["--mutual-chap", self._credentials(name, options.mutual_chap)] if options.mutual_chap else []
        words += ["--read-only"] if options.read_only else []
        words += ["--removable"] if options.removable else []
        self.check("volume", "create", name, *words)
        shown = self.json("volume", "show", name)
        return Volume(name, shown["iqn"], 0, self.portal, shown["size_bytes"], options)

    def _credentials(self, volume: str, chap: Chap) -> str:
        secret_file = self.directory / f"{volume}-{chap.user}.secret"
        secret_file.write_text(chap.secret + "\n")
        secret_file.chmod(0o600)
        return f"{chap.user}:{secret_file}"

    def backing_file(self, volume: Volume) -> Path:
        found = self.json("volume", "show", volume.name)["id"]
        return self.pool / "volumes" / f"{found}.blocks"
