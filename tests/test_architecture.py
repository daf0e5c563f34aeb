"""The shape of the code, enforced: who may import whom, what stays pure, and how large a file or function may grow.

The rules are docs/ARCHITECTURE.md sections 3 and 4. Everything here is read from the syntax tree, never by importing,
so a module that breaks a rule is found even when no other test loads it.
"""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Room -> the rooms it may import at run time: those that come later on a byte's way, and wire for session.
# Every room may also use metadata's *values* (METADATA_VALUES), never its stores.
ALLOWED: dict[str, frozenset[str]] = {
    "wire": frozenset(),
    "session": frozenset({"wire", "scsi", "volume"}),
    "scsi": frozenset({"volume"}),
    "volume": frozenset({"peer", "storage"}),
    "peer": frozenset({"storage"}),
    "storage": frozenset(),
    "metadata": frozenset(),
    "group": frozenset({"session", "scsi", "volume", "peer", "storage", "metadata"}),
    # The shells. server/member.py is the only place that wires everything; cli starts it.
    "admin": frozenset({"wire", "session", "scsi", "volume", "peer", "storage", "metadata", "group"}),
    "server": frozenset({"wire", "session", "scsi", "volume", "peer", "storage", "metadata", "group", "admin"}),
    "cli": frozenset({"wire", "session", "scsi", "volume", "peer", "storage", "metadata", "group", "admin", "server"}),
}
SHELLS = frozenset({"server", "admin", "cli"})
METADATA_VALUES = "san_target.metadata.schema"

# Modules (path below san_target, glob) that know no clock, no randomness, no operating system: time is an argument.
PURE = (
    "wire/*.py",
    "session/*.py",
    "scsi/*.py",
    "metadata/schema.py",
    "volume/device.py",
    "volume/partition_map.py",
    "volume/stored_map.py",
    "peer/frame*.py",
    "peer/handshake.py",
    "peer/identity.py",
    "peer/lanes.py",
    "peer/load_report.py",
    "peer/messages.py",
    "peer/send_lanes.py",
    "peer/transport.py",
    "group/compatibility.py",
    "group/decisions.py",
    "group/efficiency.py",
    "group/load.py",
    "group/members.py",
    "group/spread.py",
    "group/migration.py",
    "group/portal_*.py",
    "group/*balancer.py",
    "group/*planner.py",
)
# The same below initiator_sim: the protocol, and the judgement of what was seen.
PURE_SIMULATOR = (
    "blocks.py",
    "capture.py",
    "cdb.py",
    "chap.py",
    "disk_history.py",
    "history.py",
    "login.py",
    "measure.py",
    "parameters.py",
    "personalities.py",
    "recorder.py",
    "sense.py",
    "session.py",
    "task.py",
)
IMPURE_MODULES = frozenset(
    {"asyncio", "concurrent", "multiprocessing", "os", "random", "secrets", "select", "selectors"}
    | {"signal", "socket", "ssl", "subprocess", "threading", "time"}
)

FILE_LINES_MAX = 500
FUNCTION_LINES_MAX = 70


@dataclass(frozen=True)
class Import:
    """One imported module, with the place of the statement; `typing_only` = below `if TYPE_CHECKING`."""

    module: str
    line: int
    typing_only: bool


def module_name(path: Path, root: Path) -> str:
    """`root/san_target/wire/hot.py` -> `san_target.wire.hot` (a package is named without `__init__`)."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_type_checking(test: ast.expr) -> bool:
    """True for the condition of `if TYPE_CHECKING:` in either spelling."""
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def imports_of(tree: ast.AST, package: str, typing_only: bool = False) -> Iterator[Import]:
    """All imports below `tree`, also those inside functions. `package` resolves relative ones.

    `from a import b` yields both `a` and `a.b`: b may be a module.
    """
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, typing_only)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield Import(base, node.lineno, typing_only)
            for alias in node.names:
                yield Import(f"{base}.{alias.name}", node.lineno, typing_only)
        elif isinstance(node, ast.If) and is_type_checking(node.test):
            yield from imports_of(ast.Module(node.body, []), package, typing_only=True)
            yield from imports_of(ast.Module(node.orelse, []), package, typing_only)
        else:
            yield from imports_of(node, package, typing_only)


@cache
def imports_in(path: Path, root: Path) -> list[Import]:
    """All imports of the file at `path`."""
    name = module_name(path, root)
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    return list(imports_of(ast.parse(path.read_text(), str(path)), package))


def room_of(module: str) -> str | None:
    """The room of a module of san_target; None for anything else."""
    parts = module.split(".")
    return parts[1] if parts[0] == "san_target" and len(parts) > 1 and parts[1] in ALLOWED else None


def direction_faults(root: Path) -> list[str]:
    """Imports against the byte's way, and modules that lie in no room."""
    faults = []
    for path in sorted((root / "san_target").rglob("*.py")):
        room = room_of(module_name(path, root))
        if room is None:
            if path != root / "san_target" / "__init__.py":
                faults.append(f"{path.relative_to(root)}: lies in no room of the architecture")
            continue
        for found in imports_in(path, root):
            target = room_of(found.module)
            if target is None or target == room or target in ALLOWED[room]:
                continue
            if found.module == METADATA_VALUES or found.module.startswith(METADATA_VALUES + "."):
                continue
            if f"{found.module}.schema" == METADATA_VALUES and imports_only_values(path, root, found.line):
                continue
            if found.typing_only and target not in SHELLS:
                continue
            faults.append(f"{path.relative_to(root)}:{found.line}: {room} imports {found.module}")
    return faults


def imports_only_values(path: Path, root: Path, line: int) -> bool:
    """True where the statement on `line` is `from san_target.metadata import schema`."""
    names = {found.module for found in imports_in(path, root) if found.line == line}
    return names <= {METADATA_VALUES, METADATA_VALUES.rpartition(".")[0]} and METADATA_VALUES in names


def pure_files(root: Path) -> list[Path]:
    patterns = [("san_target", pattern) for pattern in PURE] + [("initiator_sim", name) for name in PURE_SIMULATOR]
    return sorted({path for package, pattern in patterns for path in (root / package).glob(pattern)})


def purity_faults(root: Path) -> list[str]:
    """Run-time imports of a clock, a socket, randomness ... in a pure module, directly or through a project module."""
    faults = []
    for path in pure_files(root):
        for line, chain in impure_imports(path, root):
            faults.append(f"{path.relative_to(root)}:{line}: pure, but imports {' -> '.join(chain)}")
    return faults


def impure_imports(start: Path, root: Path) -> list[tuple[int, tuple[str, ...]]]:
    """(line in `start`, modules from that import to the impure one), nearest first."""
    reached: list[tuple[int, tuple[str, ...]]] = []
    seen = {start}
    queue: list[tuple[Path, int | None, tuple[str, ...]]] = [(start, None, ())]
    for path, first_line, chain in queue:  # grows while it is walked: breadth first
        for found in imports_in(path, root):
            line = first_line or found.line
            if found.typing_only:
                continue
            if found.module.split(".")[0] in IMPURE_MODULES:
                reached.append((line, (*chain, found.module)))
            inner = source_of(found.module, root)
            if inner is not None and inner not in seen:
                seen.add(inner)
                queue.append((inner, line, (*chain, found.module)))
    return reached


def source_of(module: str, root: Path) -> Path | None:
    """The file of a project module; None for other modules and for names inside a module."""
    base = root.joinpath(*module.split("."))
    for candidate in (base.with_suffix(".py"), base / "__init__.py"):
        if module.startswith(("san_target", "initiator_sim")) and candidate.is_file():
            return candidate
    return None


def size_faults(root: Path) -> list[str]:
    """Files and functions of the product that are too long to be held in the head."""
    faults = []
    for package in ("san_target", "initiator_sim"):
        for path in sorted((root / package).rglob("*.py")):
            text = path.read_text()
            lines = text.count("\n")
            if lines > FILE_LINES_MAX:
                faults.append(f"{path.relative_to(root)}: {lines} lines (at most {FILE_LINES_MAX})")
            for node in ast.walk(ast.parse(text, str(path))):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    length = (node.end_lineno or node.lineno) - node.lineno + 1
                    if length > FUNCTION_LINES_MAX:
                        where = f"{path.relative_to(root)}:{node.lineno}"
                        faults.append(f"{where}: {node.name}() has {length} lines (at most {FUNCTION_LINES_MAX})")
    return faults


def report(faults: list[str]) -> str:
    return "\n" + "\n".join(faults)


def test_imports_follow_the_way_of_a_byte() -> None:
    faults = direction_faults(ROOT)
    assert not faults, report(faults)


def test_pure_modules_know_no_outside_world() -> None:
    assert pure_files(ROOT), "the list of pure modules matches nothing"
    faults = purity_faults(ROOT)
    assert not faults, report(faults)


def test_files_and_functions_can_be_held_in_the_head() -> None:
    faults = size_faults(ROOT)
    assert not faults, report(faults)


# ---- the checks themselves can fail ----


@pytest.fixture
def crafted(tmp_path: Path) -> Path:
    """A small well-behaved project tree; the tests below add one bad file each."""
    for name in (
        "san_target/__init__.py",
        "san_target/wire/__init__.py",
        "san_target/session/__init__.py",
        "san_target/server/__init__.py",
        "san_target/metadata/__init__.py",
        "san_target/metadata/schema.py",
        "san_target/metadata/sqlite.py",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    good = "from typing import TYPE_CHECKING\nfrom san_target.metadata import schema\nfrom ..wire import opcodes\n"
    (tmp_path / "san_target/session/good.py").write_text(good + "if TYPE_CHECKING:\n    import socket\n")
    return tmp_path


def write(root: Path, name: str, source: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(textwrap.dedent(source))


def test_a_good_tree_has_no_faults(crafted: Path) -> None:
    assert direction_faults(crafted) == purity_faults(crafted) == size_faults(crafted) == []


@pytest.mark.parametrize(
    "source",
    [
        "import san_target.session.good\n",
        "from ..session import good\n",
        "from san_target import session\n",
        "def f():\n    from san_target.session.good import x\n",
        "from san_target.metadata import sqlite\n",
        "from san_target.metadata import schema, sqlite\n",
        "from san_target.metadata import *\n",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from san_target.server import member\n",
    ],
)
def test_a_wrong_direction_is_found(crafted: Path, source: str) -> None:
    write(crafted, "san_target/wire/bad.py", source)
    assert [fault for fault in direction_faults(crafted) if "wire/bad.py" in fault]


def test_a_module_outside_every_room_is_found(crafted: Path) -> None:
    write(crafted, "san_target/helpers.py", "")
    write(crafted, "san_target/utils/misc.py", "")
    assert len(direction_faults(crafted)) == 2


@pytest.mark.parametrize(
    "source",
    [
        "import time\n",
        "import os.path\n",
        "from asyncio import sleep\n",
        "def f():\n    import random\n",
        "import typing\nif typing.TYPE_CHECKING:\n    pass\nelse:\n    import socket\n",
    ],
)
def test_an_impure_import_is_found(crafted: Path, source: str) -> None:
    write(crafted, "san_target/scsi/bad.py", source)
    assert [fault for fault in purity_faults(crafted) if "scsi/bad.py" in fault]


def test_impurity_through_another_module_is_found(crafted: Path) -> None:
    write(crafted, "san_target/volume/__init__.py", "")
    write(crafted, "san_target/volume/router.py", "import threading\n")
    write(crafted, "san_target/scsi/bad.py", "from san_target.volume import router\n")
    faults = purity_faults(crafted)
    assert len(faults) == 1
    assert "san_target.volume.router -> threading" in faults[0]


def test_long_files_and_functions_are_found(crafted: Path) -> None:
    write(crafted, "san_target/wire/long.py", "x = 1\n" * (FILE_LINES_MAX + 1))
    body = "    x = 1\n" * FUNCTION_LINES_MAX
    write(crafted, "initiator_sim/big.py", "class C:\n    async def f(self):\n" + body.replace("    x", "        x"))
    assert size_faults(crafted) == [
        "san_target/wire/long.py: 501 lines (at most 500)",
        "initiator_sim/big.py:2: f() has 71 lines (at most 70)",
    ]
