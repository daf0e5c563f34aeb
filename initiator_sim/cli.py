"""The `initiator-sim` command."""

import asyncio
import json
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeVar

import click
import rich_click
from rich.console import Console

import san_target
from initiator_sim import plot as plotting
from initiator_sim.chap import Credentials
from initiator_sim.client import Initiator, ScsiError
from initiator_sim.fleet import Assignment, Fleet
from initiator_sim.group_map import ApiError
from initiator_sim.inspection import inspect as inspect_disk
from initiator_sim.login import LoginError
from initiator_sim.nexus import split_address
from initiator_sim.personalities import OPEN_ISCSI, PERSONALITIES, with_digests
from initiator_sim.session import ProtocolError
from initiator_sim.view import LiveView, show_report
from initiator_sim.workload import WORKLOADS, Plan

Result = TypeVar("Result")
UNITS: Final = "kmgt"
_EXPECTED: Final = (ApiError, LoginError, ProtocolError, ScsiError, LookupError, ValueError, OSError)


class Program(rich_click.RichGroup):
    """Errors as one plain line on stderr: exit code 1, or 2 for wrong usage."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        try:
            status = super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            sys.exit(error.exit_code)
        except click.ClickException as error:
            line = " ".join(error.format_message().split())
            if isinstance(error, click.UsageError) and error.ctx is not None:
                line = f"{line} (see: {error.ctx.command_path} --help)"
            click.echo(f"initiator-sim: {line}", err=True)
            sys.exit(error.exit_code)
        except (click.Abort, KeyboardInterrupt):
            click.echo("initiator-sim: interrupted", err=True)
            sys.exit(130)
        except BrokenPipeError:
            sys.stderr.close()
            sys.exit(1)
        sys.exit(status if isinstance(status, int) else 0)


def execute(work: Coroutine[Any, Any, Result]) -> Result:
    """Run it on uvloop; what goes wrong in the world becomes one line."""
    import uvloop

    try:
        return uvloop.run(work)
    except TimeoutError:
        raise click.ClickException("no answer in time") from None
    except ConnectionRefusedError:
        raise click.ClickException("nobody listens at this portal (connection refused)") from None
    except socket.gaierror as error:
        raise click.ClickException(f"the portal's host name cannot be resolved ({error.strerror})") from None
    except _EXPECTED as error:
        raise click.ClickException(str(error) or type(error).__name__) from None


# --- the values of options --------------------------------------------------------------------------------------------


class SizeType(click.ParamType):  # type: ignore[type-arg]
    """Bytes, or a number with k, m, g, t (binary): 4k."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        text = str(value).strip().lower().removesuffix("b").removesuffix("i")
        factor = 1
        if text and text[-1] in UNITS:
            factor = 1 << 10 * (UNITS.index(text[-1]) + 1)
            text = text[:-1]
        if not text.isdigit() or int(text) == 0:
            self.fail(f"{value!r} is no size: expected bytes, or a number with k, m, g, such as 4k", param, ctx)
        return int(text) * factor


class PortalType(click.ParamType):  # type: ignore[type-arg]
    """HOST or HOST:PORT."""

    name = "portal"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            split_address(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)
        return str(value)


class UserType(click.ParamType):  # type: ignore[type-arg]
    """USER:SECRET_FILE; one line end at the end of the file is not part of the secret."""

    name = "user:secret_file"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Credentials:
        if isinstance(value, Credentials):
            return value
        user, separator, file = str(value).rpartition(":")
        if not separator or not user or not file:
            self.fail(f"{value!r}: expected USER:SECRET_FILE", param, ctx)
        try:
            secret = Path(file).read_bytes()
        except OSError as error:
            self.fail(f"{file}: {error.strerror}", param, ctx)
        return Credentials(user, secret.removesuffix(b"\n").removesuffix(b"\r"))


def initiator_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Who logs in, and how."""
    options = (
        click.option("--name", help="The initiator's name; by default the personality's."),
        click.option(
            "--personality",
            type=click.Choice(list(PERSONALITIES)),
            default=OPEN_ISCSI.name,
            show_default=True,
            help="The kind of initiator to behave like.",
        ),
        click.option("--chap", type=UserType(), metavar="USER:SECRET_FILE", help="Prove to be this user."),
        click.option(
            "--mutual-chap", type=UserType(), metavar="USER:SECRET_FILE", help="What the target has to prove."
        ),
        click.option(
            "--digest",
            type=click.Choice(["none", "header", "data", "both"]),
            help="CRC32C digests; by default what the personality offers.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


json_option = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")


def _initiator(
    name: str | None,
    personality: str,
    chap: Credentials | None,
    mutual_chap: Credentials | None,
    digest: str | None,
) -> Initiator:
    if mutual_chap is not None and chap is None:
        raise click.UsageError("--mutual-chap needs --chap (RFC 7143 12.1.3)")
    kind = PERSONALITIES[personality]
    keys = None if digest is None else with_digests(kind, digest)
    return Initiator(name, kind, chap=chap, mutual=mutual_chap, keys=keys)


def print_json(document: object) -> None:
    click.echo(json.dumps(document, ensure_ascii=False))


# --- commands ---------------------------------------------------------------------------------------------------------


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(san_target.__version__, prog_name="initiator-sim", message="%(prog)s %(version)s")
def main() -> None:
    """A simulated initiator: look at iSCSI targets, put load on them, check every byte."""


@main.command()
@click.argument("portal", type=PortalType())
@initiator_options
@json_option
def discover(portal: str, as_json: bool, **who: Any) -> None:
    """List the targets that PORTAL offers."""

    async def work() -> list[dict[str, Any]]:
        targets = await _initiator(**who).discover(portal)
        return [{"iqn": target.iqn, "addresses": list(target.addresses)} for target in targets]

    found = execute(work())
    if as_json:
        print_json(found)
        return
    for target in found:
        click.echo(target["iqn"])
        for address in target["addresses"]:
            click.echo(f"    {address}")
    if not found:
        click.echo("no targets", err=True)


@main.command()
@click.argument("portal", type=PortalType())
@click.argument("iqn")
@click.option("--lun", type=click.IntRange(0, 16383), help="By default the first that is a disk.")
@initiator_options
@json_option
def inspect(portal: str, iqn: str, lun: int | None, as_json: bool, **who: Any) -> None:
    """Show what a disk says about itself: inquiry, pages, capacity, reservations."""

    async def work() -> dict[str, Any]:
        async with _initiator(**who).connect(portal, iqn, lun=lun) as disk:
            return await inspect_disk(disk)

    found = execute(work())
    if as_json:
        print_json(found)
    else:
        _show(Console(), found)


def _show(console: Console, value: Any, indent: int = 0) -> None:
    """Nested values as an indented list."""
    margin = "  " * indent
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        label = str(key).replace("_", " ") if isinstance(value, dict) else "-"
        if isinstance(inner, dict) and set(inner) == {"name", "value"}:
            label, inner = f"{label} {inner['name']}", inner["value"]
        if isinstance(inner, list) and all(isinstance(one, str | int) for one in inner):
            inner = ", ".join(map(str, inner)) or "none"
        if isinstance(inner, dict | list):
            console.print(f"{margin}[bold]{label}[/]", highlight=False)
            _show(console, inner, indent + 1)
        else:
            shown = "none" if inner is None else ("no", "yes")[inner] if isinstance(inner, bool) else inner
            console.print(f"{margin}{label}: {shown}", highlight=False, markup=False)


@main.command()
@click.argument("portal", type=PortalType())
@click.argument("iqn")
@click.option("--portal", "more_portals", type=PortalType(), multiple=True, help="Further portals for the sessions.")
@click.option("--lun", type=click.IntRange(0, 16383), help="By default the first that is a disk.")
@click.option("--sessions", type=click.IntRange(1), default=1, show_default=True, help="Sessions of each initiator.")
@click.option("--initiators", type=click.IntRange(1), default=1, show_default=True)
@click.option("--workload", type=click.Choice(WORKLOADS), default="randread", show_default=True)
@click.option("--read-share", type=click.FloatRange(0, 1), default=0.7, show_default=True, help="For randrw.")
@click.option("--block", type=SizeType(), default="4k", show_default=True, help="Size of one I/O.")
@click.option("--depth", type=click.IntRange(1, 1024), default=32, show_default=True, help="I/Os in flight a session.")
@click.option("--rate", type=click.FloatRange(0), default=0.0, help="I/Os a second and session; 0 = unbounded.")
@click.option("--seconds", type=click.FloatRange(0, min_open=True), default=10.0, show_default=True)
@click.option("--zipf", type=click.FloatRange(0), default=0.0, help="Hot spots: exponent such as 1.1; 0 = uniform.")
@click.option("--discard-share", type=click.FloatRange(0, 1), default=0.0, help="Share of UNMAP among all I/Os.")
@click.option("--flush-every", type=click.IntRange(0), default=0, help="A flush after so many writes of a session.")
@click.option("--burst", type=(float, float), metavar="WORK REST", help="Seconds to work and to rest, in turn.")
@click.option("--verify", is_flag=True, help="Check every block read, and at the end the history of all operations.")
@click.option("--strict", is_flag=True, help="Verify also that no read finds a block torn by a write under way.")
@click.option(
    "--plot", "plot_file", type=click.Path(dir_okay=False, path_type=Path), help="Draw the run: FILE.svg or FILE.png."
)
@click.option("--api", metavar="URL", help="A member's HTTP API: migrations of data are shown, and marked in the plot.")
@click.option("--api-token-file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Its token.")
@click.option("--seed", type=int, default=0, show_default=True)
@initiator_options
@json_option
def run(**options: Any) -> int:
    """Put load on a disk, watch it live, and report. Exit code 1 after any error, hang or broken rule."""
    who = {key: options[key] for key in ("name", "personality", "chap", "mutual_chap", "digest")}
    _initiator(**who)  # refuses what does not go together
    personality = PERSONALITIES[options["personality"]]
    assignment = Assignment(
        portals=(options["portal"], *options["more_portals"]),
        iqn=options["iqn"],
        plan=_plan(options),
        personality=replace(personality, initiator_name=options["name"] or personality.initiator_name),
        initiators=options["initiators"],
        sessions=options["sessions"],
        seconds=options["seconds"],
        verify=options["verify"] or options["strict"],
        strict=options["strict"],
        api=options["api"],
        api_token=_token(options["api_token_file"]),
        lun=options["lun"],
        chap=options["chap"],
        mutual=options["mutual_chap"],
        keys=None if options["digest"] is None else with_digests(personality, options["digest"]),
    )
    plot_file: Path | None = options["plot_file"]
    if plot_file is not None:
        _check_plot(plot_file)
    report = execute(_run(assignment, live=not options["as_json"]))
    if plot_file is not None:
        try:
            plotting.plot(report, plot_file)
        except OSError as error:
            raise click.ClickException(f"{plot_file}: {error.strerror}") from None
    if options["as_json"]:
        print_json(report)
    else:
        show_report(report, Console())
    return 0 if report["ok"] else 1


def _token(file: Path | None) -> str | None:
    return None if file is None else file.read_text().strip()


def _check_plot(file: Path) -> None:
    if file.suffix not in plotting.SUFFIXES:
        raise click.BadParameter("expected a name that ends with .svg or .png", param_hint="--plot")
    if not plotting.is_available():
        raise click.ClickException("--plot needs matplotlib: pip install 'san-target[plot]'")


async def _run(assignment: Assignment, live: bool) -> dict[str, Any]:
    fleet = Fleet(assignment)
    console = Console(stderr=True)
    loop = asyncio.get_running_loop()

    def interrupted() -> None:
        """The first Ctrl-C ends the work, with its report; the next one everything."""
        loop.remove_signal_handler(signal.SIGINT)
        fleet.finish()

    loop.add_signal_handler(signal.SIGINT, interrupted)
    if live and console.is_terminal:
        with LiveView(fleet, console) as view:
            await fleet.run(view.interval)
    else:
        await fleet.run()
    return fleet.report()


def _plan(options: dict[str, Any]) -> Plan:
    burst_s, pause_s = options["burst"] or (0.0, 0.0)
    return Plan(
        workload=options["workload"],
        block_bytes=options["block"],
        depth=options["depth"],
        read_share=options["read_share"],
        zipf=options["zipf"],
        rate=options["rate"],
        discard_share=options["discard_share"],
        flush_every=options["flush_every"],
        burst_s=burst_s,
        pause_s=pause_s,
        seed=options["seed"],
    )


@main.command()
@click.argument("portal", type=PortalType())
@click.argument("iqn", required=False)
@click.option("--seconds", type=click.FloatRange(0, min_open=True), default=30.0, show_default=True)
@click.option("--seed", type=click.IntRange(0), help="The same seed makes the same cases; by default a new one.")
@click.option("--case", "numbers", type=click.IntRange(0), multiple=True, help="Only this case of the seed, shown.")
@click.option("--kind", "kinds", multiple=True, help="Only cases of this kind.")
@click.option("--destructive", is_flag=True, help="Write to the volume too: what it holds is lost.")
@click.option("--lun", type=click.IntRange(0, 16383), help="By default the first that is a disk.")
@click.option("--connections", type=click.IntRange(1, 64), default=8, show_default=True, help="Cases at once.")
@click.option(
    "--patience",
    type=click.FloatRange(0, min_open=True),
    default=10.0,
    show_default=True,
    help="Seconds that the target may take for what it has to do.",
)
@initiator_options
@json_option
def fuzz(**options: Any) -> int:
    """Send malformed and hostile PDUs, to the portal or also to the target IQN; others must not notice.

    Exit code 1 if the target crashes, hangs, answers wrongly, or does not serve well-behaved sessions.
    """
    from initiator_sim.fuzz.command import assignment, run_campaign

    who = {key: options.pop(key) for key in ("name", "personality", "chap", "mutual_chap", "digest")}
    as_json: bool = options.pop("as_json")

    async def work() -> dict[str, Any]:
        found = assignment(_initiator(**who), who["chap"], who["mutual_chap"], **options)
        return await run_campaign(found, quiet=as_json)

    report = execute(work())
    if as_json:
        print_json(report)
    return 0 if report["ok"] else 1


@main.command()
@click.argument("portal", type=PortalType(), required=False)
@click.argument("iqn", required=False)
@click.option("--portal", "more_portals", type=PortalType(), multiple=True, help="Further portals of the same target.")
@click.option("--lun", type=click.IntRange(0, 16383), help="By default the first that is a disk.")
@click.option("--check", "names", metavar="NAME", multiple=True, help="Only this check.")
@click.option("--list", "only_list", is_flag=True, help="List the checks, run none.")
@click.option(
    "--patience",
    type=click.FloatRange(0, min_open=True),
    default=5.0,
    show_default=True,
    help="Seconds that an answer may take.",
)
@click.option("--trigger", metavar="COMMAND", help="A shell command that makes the target ask a session to leave.")
@click.option("--api", "--admin", metavar="URL", help="A san-target member's HTTP API, which can do the same.")
@click.option("--api-token-file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Its token.")
@initiator_options
@json_option
def conformance(portal: str | None, iqn: str | None, as_json: bool, **options: Any) -> int:
    """Check the target IQN at PORTAL against the protocol. Exit code 1 if it fails any check.

    Not for a disk in use: checks reset the unit and reserve it, and write to its last 128 blocks, which are put back.
    """
    from initiator_sim.conformance import CHECKS, command
    from initiator_sim.conformance.hooks import Hooks

    if options["only_list"]:
        command.show_list(CHECKS, Console())
        return 0
    if portal is None or iqn is None:
        raise click.UsageError("PORTAL and IQN are needed")
    who = {key: options[key] for key in ("name", "personality", "chap", "mutual_chap", "digest")}
    digest = options["digest"]
    order = command.Order(
        (portal, *options["more_portals"]),
        iqn,
        options["lun"],
        options["names"],
        Hooks(options["trigger"], options["api"], _token(options["api_token_file"])),
        options["chap"],
        options["mutual_chap"],
        () if digest is None else with_digests(OPEN_ISCSI, digest),
        options["patience"],
    )

    async def work() -> dict[str, Any]:
        return await command.carry_out(_initiator(**who), order, None if as_json else Console())

    report = execute(work())
    if as_json:
        print_json(report)
    return 1 if report["failed"] else 0


@main.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--port", type=click.IntRange(1, 65535), default=3260, show_default=True, help="The target's port.")
@json_option
def pcap(file: Path, port: int, as_json: bool) -> None:
    """Decode a capture of iSCSI traffic (tcpdump -w FILE), one line per PDU."""
    from initiator_sim import capture

    try:
        found = capture.decode(file, port)
        if as_json:
            print_json(list(found))
        else:
            for pdu in found:
                click.echo(capture.line(pdu))
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from None


if __name__ == "__main__":
    main()
