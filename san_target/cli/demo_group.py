"""The processes of a demo: started, watched, and ended together.

Each member is one `san-target serve`. A member that dies ends the demo with its last words; SIGINT or SIGTERM ends
all members, and should the demo itself be killed, the kernel ends them.
"""

import asyncio
import contextlib
import ctypes
import errno
import fcntl
import json
import signal
import socket
import sys
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import click

from san_target.cli.client import Api, segment
from san_target.cli.values import format_size

T = TypeVar("T")

HOST = "127.0.0.1"
ADMIN_OFFSET = 20
READY_SECONDS_MAX = 60.0
STOP_SECONDS_MAX = 20.0
DEATH_SECONDS = 2.0
PR_SET_PDEATHSIG = 1
OUTPUT_LINE_BYTES_MAX = 1 << 20
INFORMATION = "level=info"


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run. directory: absolute; volumes: name -> bytes; exit_after_s: None = until a signal."""

    directory: Path
    base_port: int
    members: int
    volumes: dict[str, int]
    exit_after_s: float | None
    as_json: bool


@dataclass(slots=True)
class Child:
    """One member's process. last_words: its latest line on stderr."""

    name: str
    portal: str
    admin: str
    process: asyncio.subprocess.Process
    last_words: str = ""
    readers: list[asyncio.Task[None]] = field(default_factory=list)
    ready: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def api(self) -> Api:
        return Api(f"http://{self.admin}")


def run(plan: Plan) -> None:
    """Run until the plan's time or a signal ends it. Raises ClickException if it cannot start or a member dies."""
    with held(plan.directory):
        check_ports(plan)
        asyncio.run(_Demo(plan).run())


@contextlib.contextmanager
def held(directory: Path) -> Iterator[None]:
    """Keep a second demo off the directory while this one runs."""
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = (directory / "demo.lock").open("a")
    except OSError as error:
        raise click.ClickException(f"cannot use {directory}: {error.strerror}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise click.ClickException(f"another demo runs on {directory}: end it, or give another --dir") from None
        yield


def ports_of(plan: Plan) -> list[int]:
    """Every port the demo listens on."""
    portals = range(plan.base_port, plan.base_port + plan.members)
    return [*portals, *(port + ADMIN_OFFSET for port in portals)]


def check_ports(plan: Plan) -> None:
    """Raise ClickException that names the first port that is not free."""
    for port in ports_of(plan):
        try:
            socket.create_server((HOST, port)).close()
        except OSError as error:
            why = "is taken" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
            raise click.ClickException(
                f"port {port} on {HOST} {why}: give another --base-port (now {plan.base_port})"
            ) from None


def serve_command(plan: Plan, index: int) -> list[str]:
    """The command line of member `index`, counted from 0."""
    name = f"m{index + 1}"
    return [
        *(sys.executable, "-m", "san_target.cli", "serve"),
        *("--name", name),
        *("--dir", str(plan.directory / name)),
        *("--portal", f"{HOST}:{plan.base_port + index}"),
        *("--admin", f"{HOST}:{plan.base_port + ADMIN_OFFSET + index}"),
        *("--store", f"sqlite://{plan.directory / 'group.sqlite'}"),
        *("--group", "demo"),
    ]


def die_with_parent() -> None:
    """Runs in a new child: have the kernel send it SIGTERM when the demo ends in any way (Linux prctl(2))."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


async def forever(seconds: float | None) -> None:
    """Wait that long, or for ever."""
    await (asyncio.Event().wait() if seconds is None else asyncio.sleep(seconds))


class _Stopped(Exception):
    """A signal asked the demo to end."""


class _Demo:
    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._children: list[Child] = []
        self._stop = asyncio.Event()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop.set)
        try:
            for index in range(self._plan.members):
                self._children.append(await self._start(index))
            await self._unless_it_ends(self._all_ready(), READY_SECONDS_MAX)
            work = asyncio.to_thread(have_volumes, self._children[0].api, self._plan.volumes)
            announce(self._plan, self._children, await self._unless_it_ends(work))
            await self._unless_it_ends(forever(self._plan.exit_after_s))
        except _Stopped:
            pass
        finally:
            await self._end()

    async def _start(self, index: int) -> Child:
        process = await asyncio.create_subprocess_exec(
            *serve_command(self._plan, index),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=OUTPUT_LINE_BYTES_MAX,
            start_new_session=True,  # Ctrl-C reaches the demo alone, which then ends its members in order
            preexec_fn=die_with_parent,
        )
        portal, admin = self._plan.base_port + index, self._plan.base_port + ADMIN_OFFSET + index
        child = Child(f"m{index + 1}", f"{HOST}:{portal}", f"{HOST}:{admin}", process)
        child.readers = [
            asyncio.create_task(_read_output(child)),
            asyncio.create_task(_read_errors(child, self._plan.directory / f"{child.name}.log")),
        ]
        return child

    async def _all_ready(self) -> None:
        for child in self._children:
            await child.ready.wait()

    async def _unless_it_ends(self, work: Coroutine[Any, Any, T], seconds: float | None = None) -> T:
        """The result of `work`. _Stopped: a signal came first. ClickException: a member died, or time is up."""
        task = asyncio.create_task(work)
        stop = asyncio.create_task(self._stop.wait())
        deaths = {asyncio.create_task(child.process.wait()): child for child in self._children}
        try:
            done, _ = await asyncio.wait({task, stop, *deaths}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if task in done and task.exception() is not None:
                # Work that failed for want of a member may learn of its end a moment before we do.
                done |= (await asyncio.wait(deaths, timeout=DEATH_SECONDS, return_when=asyncio.FIRST_COMPLETED))[0]
            if stop in done:
                raise _Stopped
            for death, child in deaths.items():
                if death in done:
                    await asyncio.gather(*child.readers)
                    why = child.last_words or f"exit status {child.process.returncode}"
                    raise click.ClickException(f"member {child.name} ended: {why}")
            if task not in done:
                raise click.ClickException(f"the demo was not ready after {seconds:.0f} s")
            return task.result()
        finally:
            for one in (task, stop, *deaths):
                one.cancel()

    async def _end(self) -> None:
        """SIGTERM to every member, SIGKILL to those that do not obey; each by its own process id."""
        alive = [child for child in self._children if child.process.returncode is None]
        for child in alive:
            with contextlib.suppress(ProcessLookupError):
                child.process.terminate()
        for child in alive:
            try:
                await asyncio.wait_for(child.process.wait(), STOP_SECONDS_MAX)
            except TimeoutError:
                click.echo(f"member {child.name} did not end in {STOP_SECONDS_MAX:.0f} s and is killed", err=True)
                with contextlib.suppress(ProcessLookupError):
                    child.process.kill()
                await child.process.wait()
        await asyncio.gather(*(reader for child in self._children for reader in child.readers))


async def _read_output(child: Child) -> None:
    """A member's stdout: the line that begins with `ready` says that it serves."""
    assert child.process.stdout is not None
    async for line in child.process.stdout:
        if line.split(maxsplit=1)[:1] == [b"ready"]:
            child.ready.set()


async def _read_errors(child: Child, log_file: Path) -> None:
    """A member's stderr goes into its log file; what is more than information also to ours, with the member's name."""
    assert child.process.stderr is not None
    with log_file.open("wb", buffering=0) as log:
        async for line in child.process.stderr:
            with contextlib.suppress(OSError):  # a full disk must not silence the members
                log.write(line)
            text = line.decode("utf-8", "replace").rstrip()
            if text and INFORMATION not in text.split(maxsplit=2)[:2]:
                child.last_words = text.removeprefix("san-target: ")
                click.echo(f"{child.name}: {text}", err=True)


def have_volumes(api: Api, wanted: dict[str, int]) -> list[dict[str, Any]]:
    """Create the volumes that do not exist; one that exists keeps its size and its data."""
    existing = {volume["name"]: volume for volume in api.get("/volumes")}
    shown = []
    for name, size_bytes in wanted.items():
        if name not in existing:
            existing[name] = api.ask("POST", "/volumes", {"name": name, "size_bytes": size_bytes})
        elif existing[name]["size_bytes"] != size_bytes:
            size = format_size(existing[name]["size_bytes"])
            click.echo(f"volume {name} exists already, with {size}; it is left as it is", err=True)
        shown.append(api.get(f"/volumes/{segment(name)}"))
    return shown


def ready_line(children: list[Child], targets: list[dict[str, Any]]) -> dict[str, Any]:
    """The one JSON document that scripts read."""
    return {
        "ready": True,
        "members": [
            {"name": child.name, "portal": child.portal, "admin": child.admin, "pid": child.process.pid}
            for child in children
        ],
        "targets": [{"iqn": one["iqn"], "lun": 0, "size_bytes": one["size_bytes"]} for one in targets],
    }


def how_to(plan: Plan, children: list[Child], targets: list[dict[str, Any]]) -> str:
    """How to connect, ready to be pasted."""
    portal, admin, iqn = children[0].portal, children[0].admin, targets[0]["iqn"]
    volumes = "\n".join(f"  {one['name']:<12} {format_size(one['size_bytes']):>8}  {one['iqn']}" for one in targets)
    return f"""san-target demo: access is open, as it listens on {HOST} only.

Volumes (data and logs in {plan.directory})
{volumes}

Connect
  open-iscsi   iscsiadm -m discovery -t sendtargets -p {portal}
               iscsiadm -m node -T {iqn} -p {portal} --login
  QEMU         qemu-img info iscsi://{portal}/{iqn}/0
  libiscsi     iscsi-ls --show-luns iscsi://{portal}
  web page     http://{admin}/
  commands     san-target --api http://{admin} volume list

Ctrl-C ends it.
"""


def announce(plan: Plan, children: list[Child], targets: list[dict[str, Any]]) -> None:
    if plan.as_json:
        click.echo(json.dumps(ready_line(children, targets)))
    else:
        click.echo(how_to(plan, children, targets))
        click.echo("ready")
    sys.stdout.flush()
