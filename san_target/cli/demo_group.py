"""The processes of a demo: started, watched, and ended together.

Each member is one `san-target serve`. Until all are ready a member that dies ends the demo with its last words. After
that it is started again, as long as others run: a group is there to survive this. SIGINT or SIGTERM ends all members,
and should the demo itself be killed, the kernel ends them.
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
PEER_OFFSET = 40
READY_SECONDS_MAX = 60.0
STOP_SECONDS_MAX = 20.0
DEATH_SECONDS = 2.0
RESTART_SECONDS = 1.0
SHORT_LIFE_SECONDS = 5.0
SHORT_LIVES_MAX = 3
LOOK_SECONDS = 0.05
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
    return [port + offset for offset in (0, ADMIN_OFFSET, PEER_OFFSET) for port in portals]


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
        *("--peer", f"{HOST}:{plan.base_port + PEER_OFFSET + index}"),
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
            targets = await self._unless_it_ends(self._have_volumes(), READY_SECONDS_MAX)
            announce(self._plan, self._children, targets)
            await self._stay(self._plan.exit_after_s)
        except _Stopped:
            pass
        finally:
            await self._end()

    async def _start(self, index: int, again: bool = False) -> Child:
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
            asyncio.create_task(_read_errors(child, self._plan.directory / f"{child.name}.log", again)),
        ]
        return child

    async def _have_volumes(self) -> list[dict[str, Any]]:
        """Every member serves every volume when this returns."""
        targets = await asyncio.to_thread(have_volumes, self._children[0].api, self._plan.volumes)
        for child in self._children:
            while not await asyncio.to_thread(serves, child.api, list(self._plan.volumes)):
                await asyncio.sleep(LOOK_SECONDS)
        return targets

    async def _stay(self, seconds: float | None) -> None:
        """Until the time is up, or a signal comes. One member alone is not started again."""
        if len(self._children) == 1:
            await self._unless_it_ends(forever(seconds))
            return
        keepers = [asyncio.create_task(self._keep(index)) for index in range(len(self._children))]
        stop = asyncio.create_task(self._stop.wait())
        try:
            left = set(keepers)
            ends_s = None if seconds is None else asyncio.get_running_loop().time() + seconds
            while left and not stop.done():
                wait_s = None if ends_s is None else max(0.0, ends_s - asyncio.get_running_loop().time())
                done, _ = await asyncio.wait({*left, stop}, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
                if not done:
                    return
                left -= done
            for keeper in set(keepers) - left:
                keeper.result()
            if not left:
                raise click.ClickException("no member is left")
        finally:
            for task in (stop, *keepers):
                task.cancel()
            await asyncio.gather(stop, *keepers, return_exceptions=True)

    async def _keep(self, index: int) -> None:
        """Start a member again whenever it ends; give up when it ends at once, again and again."""
        loop, short_lives = asyncio.get_running_loop(), 0
        while short_lives < SHORT_LIVES_MAX:
            child, since_s = self._children[index], loop.time()
            await child.process.wait()
            await asyncio.gather(*child.readers)
            lived_s = loop.time() - since_s
            short_lives = short_lives + 1 if lived_s < SHORT_LIFE_SECONDS + RESTART_SECONDS else 0
            click.echo(f"member {child.name} ended ({child.process.returncode}), and is started again", err=True)
            await asyncio.sleep(RESTART_SECONDS)
            self._children[index] = await self._start(index, again=True)
        click.echo(f"member {self._children[index].name} ends again and again; it is left alone now", err=True)

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


async def _read_errors(child: Child, log_file: Path, again: bool) -> None:
    """A member's stderr goes into its log file (again: at its end); warnings and errors also to ours, with its name."""
    assert child.process.stderr is not None
    with log_file.open("ab" if again else "wb", buffering=0) as log:
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


def serves(api: Api, volumes: list[str]) -> bool:
    """Does this member serve these volumes?"""
    ready = {volume["name"] for volume in api.get("/volumes") if volume["state"] == "ready"}
    return ready.issuperset(volumes)


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
    members = "\n".join(
        f"  {child.name:<12} portal {child.portal}, web page http://{child.admin}/" for child in children
    )
    volumes = "\n".join(f"  {one['name']:<12} {format_size(one['size_bytes']):>8}  {one['iqn']}" for one in targets)
    return f"""san-target demo: access is open, as it listens on {HOST} only.

Members
{members}

Volumes (data and logs in {plan.directory})
{volumes}

Connect
  open-iscsi   iscsiadm -m discovery -t sendtargets -p {portal}
               iscsiadm -m node -T {iqn} -p {portal} --login
  QEMU         qemu-img info iscsi://{portal}/{iqn}/0
  libiscsi     iscsi-ls --show-luns iscsi://{portal}
  simulator    initiator-sim inspect {portal} {iqn}
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
