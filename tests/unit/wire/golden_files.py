"""Reads and writes the golden conversations: what somebody else's initiator and target said to each other.

The format, one PDU after the other:

    # free comment
    > Login Request
      43 87 00 00 00 00 01 64 ...            (the header in three lines of 16 bytes, then the rest in lines of 32)
      00*512                                 (a byte, repeated)

">" is sent by the initiator, "<" by the target; the name is for the reader. A PDU has all its bytes, digests and
padding too: "# header digest from here" says that every later PDU has one.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Final

GOLDEN: Final = Path(__file__).parent / "golden"
HEADER_DIGEST_COMMENT: Final = "# header digest from here"
_REPEAT_MIN: Final = 16


@dataclass(frozen=True)
class Recorded:
    """One PDU as sent; `from_initiator` gives its direction."""

    from_initiator: bool
    name: str
    raw: bytes
    header_digest: bool

    @property
    def bhs(self) -> bytes:
        return self.raw[:48]

    @property
    def data(self) -> bytes:
        """The data segment without padding and digest."""
        start = 48 + 4 * self.raw[4] + 4 * self.header_digest
        return self.raw[start : start + int.from_bytes(self.raw[5:8], "big")]


def read(path: Path) -> Iterator[Recorded]:
    header_digest = False
    head: tuple[bool, str, bool] | None = None
    raw = bytearray()
    for line in [*path.read_text(encoding="utf-8").splitlines(), "# end"]:
        if line.startswith("  "):
            for word in line.split():
                byte, _, count = word.partition("*")
                raw += bytes.fromhex(byte) * int(count or 1)
            continue
        if head is not None:
            yield Recorded(head[0], head[1], bytes(raw), head[2])
            head = None
            raw.clear()
        if line == HEADER_DIGEST_COMMENT:
            header_digest = True
        elif found := re.fullmatch(r"([<>]) (.+)", line):
            head = (found[1] == ">", found[2], header_digest)
        elif line and not line.startswith("#"):
            raise ValueError(f"{path.name}: {line!r}")


def conversations() -> list[Path]:
    return sorted(GOLDEN.glob("*.txt"))


def write(path: Path, comments: Iterable[str], pdus: Iterable[Recorded]) -> None:
    lines = [f"# {comment}" for comment in comments]
    digested = False
    for pdu in pdus:
        if pdu.header_digest and not digested:
            lines += ["", HEADER_DIGEST_COMMENT]
            digested = True
        lines += ["", f"{'>' if pdu.from_initiator else '<'} {pdu.name}"]
        lines += ["  " + pdu.raw[start : start + 16].hex(" ") for start in (0, 16, 32)]
        lines += ["  " + line for line in _hex_lines(pdu.raw[48:])]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _hex_lines(data: bytes) -> Iterator[str]:
    words: list[str] = []
    for byte, run in groupby(data):
        count = len(list(run))
        if count < _REPEAT_MIN:
            words += [f"{byte:02x}"] * count
            continue
        if words:
            yield from _lines_of_32(words)
            words = []
        yield f"{byte:02x}*{count}"
    yield from _lines_of_32(words)


def _lines_of_32(words: list[str]) -> Iterator[str]:
    for start in range(0, len(words), 32):
        yield " ".join(words[start : start + 32])
