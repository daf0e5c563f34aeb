"""What the documents name exists: files of the product and of the tests, tests by name, links between documents."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([*(ROOT / "docs").glob("*.md"), ROOT / "README.md"])
BASES = (ROOT, ROOT / "san_target", ROOT / "tests")
# `folder/file.py` and `folder/file.py::test_name`; other words in backquotes are not meant.
NAMED = re.compile(r"`((?:[a-z_0-9]+/)+[a-z_0-9]+\.py)(?:::(\w+))?`")
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


def faults(text: str, place: Path) -> list[str]:
    """What a document names and does not exist; `place`: the directory it lies in."""
    found = []
    for path, name in NAMED.findall(text):
        files = [base / path for base in BASES if (base / path).exists()]
        if not files:
            found.append(f"{path} does not exist")
        elif name and not any(re.search(rf"\bdef {name}\(", file.read_text()) for file in files):
            found.append(f"{path} has no {name}")
    for target in LINK.findall(text):
        if "://" not in target and not (place / target).exists():
            found.append(f"link to {target}, which does not exist")
    return found


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_what_a_document_names_exists(document: Path) -> None:
    assert faults(document.read_text(), document.parent) == []


def test_a_name_of_nothing_is_seen() -> None:
    text = "`volume/router.py`, `volume/rooter.py`, `unit/volume/test_router.py::test_nothing`, [a](none.md), `x = 1`"
    assert faults(text, ROOT / "docs") == [
        "volume/rooter.py does not exist",
        "unit/volume/test_router.py has no test_nothing",
        "link to none.md, which does not exist",
    ]
