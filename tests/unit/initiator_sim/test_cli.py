"""The commands discover, inspect and run as people meet them: output, exit codes, and one line for what went wrong."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import structlog
from click.testing import CliRunner, Result

import san_target
from initiator_sim.cli import main
from initiator_sim.personalities import PERSONALITIES
from san_target.storage.faulty import Fault, Rule, Script
from tests.support.faulty_target import FaultyTarget, faulty_target
from tests.support.target import free_port, wait_for

Invoke = Callable[..., Result]


@contextmanager
def served(script: Script) -> Iterator[FaultyTarget]:
    """A target in a thread of its own, while the command has the main thread."""
    loop = asyncio.new_event_loop()
    started: list[FaultyTarget] = []
    ready, over = threading.Event(), asyncio.Event()

    async def serve() -> None:
        async with faulty_target(script, 4096, 512) as target:
            started.append(target)
            ready.set()
            await over.wait()

    # What the target logs would be taken for output of the command.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    try:
        assert ready.wait(20)
        yield started[0]
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join(20)
        loop.close()
        structlog.reset_defaults()


@pytest.fixture
def target() -> Iterator[FaultyTarget]:
    with served(Script()) as found:
        yield found


def invoke(*words: object) -> Result:
    return CliRunner().invoke(main, list(map(str, words)))


def test_discover(target: FaultyTarget) -> None:
    result = invoke("discover", target.portal)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[0] == target.iqn
    [found] = json.loads(invoke("discover", target.portal, "--json").stdout)
    assert (found["iqn"], found["addresses"]) == (target.iqn, [f"{target.portal},1"])


def test_inspect(target: FaultyTarget) -> None:
    result = invoke("inspect", target.portal, target.iqn)
    assert result.exit_code == 0
    assert "capacity" in result.stdout
    assert json.loads(invoke("inspect", target.portal, target.iqn, "--json").stdout)["capacity"]["blocks"] == 4096


@pytest.mark.parametrize("personality", PERSONALITIES)
def test_run_reports_in_json(target: FaultyTarget, personality: str) -> None:
    words = ["--workload", "randrw", "--seconds", "0.3", "--strict", "--sessions", 2, "--personality", personality]
    result = invoke("run", target.portal, target.iqn, *words, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["ok"], report["sessions"], report["personality"]) == (True, 2, personality)
    assert report["verify"]["reads_checked"] > 0


def test_run_for_people(target: FaultyTarget) -> None:
    result = invoke("run", target.portal, target.iqn, "--seconds", "0.3", "--burst", "0.1", "0.1", "--zipf", "1.1")
    assert result.exit_code == 0
    assert "IOPS" in result.stdout
    assert "no error" in result.stdout


def test_wrong_data_is_exit_code_1() -> None:
    with served(Script([Rule("write", Fault.LOST, times=-1)])) as target:
        result = invoke("run", target.portal, target.iqn, "--workload", "randrw", "--verify", "--seconds", "5")
    assert result.exit_code == 1
    assert "wrong data" in result.stdout


def test_errors_are_exit_code_1() -> None:
    with served(Script([Rule("read", Fault.ERROR, after=50)])) as target:
        result = invoke("run", target.portal, target.iqn, "--seconds", "0.5")
    assert result.exit_code == 1
    assert "MEDIUM ERROR" in result.stdout


def test_the_plot_of_a_run(target: FaultyTarget, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / "run.svg"
    assert invoke("run", target.portal, target.iqn, "--seconds", "0.3", "--plot", file).exit_code == 0
    assert b"<svg" in file.read_bytes()
    result = invoke("run", target.portal, target.iqn, "--seconds", "0.3", "--plot", tmp_path / "absent" / "run.svg")
    assert (result.exit_code, "No such file" in result.stderr) == (1, True)


def test_ctrl_c_ends_a_run_with_its_report(target: FaultyTarget) -> None:
    words = ["run", target.portal, target.iqn, "--workload", "randwrite", "--seconds", "1000", "--json"]
    process = subprocess.Popen([sys.executable, "-m", "initiator_sim.cli", *words], stdout=subprocess.PIPE)
    try:
        wait_for(lambda: target.written_bytes > 0, 60, "the first write")
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0
    report = json.loads(output)
    assert (report["ok"], report["writes"] > 0, report["seconds"] < 1000) == (True, True, True)


# --- what is said when it goes wrong ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "127.0.0.1:99999", "iqn.2026-01.org.example:disk"], "is no portal"),
        (["run", "127.0.0.1", "iqn.2026-01.org.example:disk", "--block", "4x"], "is no size"),
        (["run", "127.0.0.1", "iqn.2026-01.org.example:disk", "--plot", "run.pdf"], ".svg or .png"),
        (["run", "127.0.0.1", "iqn.2026-01.org.example:disk", "--chap", "alice"], "expected USER:SECRET_FILE"),
        (["run", "127.0.0.1", "iqn.2026-01.org.example:disk", "--chap", "alice:/absent"], "No such file"),
        (["discover", "127.0.0.1", "--mutual-chap", f"bob:{__file__}"], "--mutual-chap needs --chap"),
        (["run", "127.0.0.1"], "Missing argument"),
    ],
)
def test_wrong_usage_is_exit_code_2_and_one_line(words: list[str], said: str) -> None:
    result = invoke(*words)
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("initiator-sim: ")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--iqn", "iqn.2026-01.org.example:other"], "target not found"),
        (["--block", "1000"], "the disk has blocks of 512 bytes"),
        (["--block", "1g"], "smaller than one I/O"),
        (["--lun", "7"], "ILLEGAL REQUEST"),
        (["--api", "http://127.0.0.1:9"], "no member's HTTP API"),
    ],
)
def test_what_goes_wrong_in_the_world_is_exit_code_1_and_one_line(
    target: FaultyTarget, words: list[str], said: str
) -> None:
    iqn = words[1] if words[0] == "--iqn" else target.iqn
    result = invoke("run", target.portal, iqn, "--seconds", "0.3", *(words if words[0] != "--iqn" else ()))
    assert result.exit_code == 1
    assert said in result.stderr, result.output
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("initiator-sim: ")


def test_nobody_at_the_portal() -> None:
    result = invoke("run", f"127.0.0.1:{free_port()}", "iqn.2026-01.org.example:disk")
    assert result.exit_code == 1
    assert result.stderr == "initiator-sim: nobody listens at this portal (connection refused)\n"


def test_a_portal_without_an_address() -> None:
    result = invoke("discover", "portal.invalid")
    assert result.exit_code == 1
    assert result.stderr.startswith("initiator-sim: the portal's host name cannot be resolved (")


def test_version() -> None:
    assert invoke("--version").output == f"initiator-sim {san_target.__version__}\n"


@pytest.mark.parametrize(
    ("program", "entry", "loaded"),
    [
        ("san-target", "san_target.cli.entry", "san_target.cli.main"),
        ("initiator-sim", "initiator_sim.entry", "initiator_sim.cli"),
    ],
)
def test_ctrl_c_while_the_program_is_being_loaded(program: str, entry: str, loaded: str) -> None:
    code = f"""
import sys
class Interrupting:
    def find_spec(self, name, *rest):
        if name == {loaded!r}:
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupting())
from {entry} import run
run()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", f"{program}: interrupted\n")
