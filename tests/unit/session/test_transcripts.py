"""Transcripts: what an initiator sends, and exactly what must come back.

Each file in transcripts/ holds scenarios ("--- title"). Lines:
    set NAME VALUE         the target's settings, see `Scenario.set`
    > login WORDS          a Login Request; T, C and csg=, nsg=, tsih=, itt=, cid=, isid=, version=
    > text WORDS           a Text Request; F, C and itt=, ttt=
      key=value            its data, one pair a line; a line that ends in "\\" has no NUL (the pair goes on)
    < login | text | reject   the response, with its data
    = ...                  the result of login: whatever differs from the defaults
    # ...                  a comment
To rewrite the responses on purpose: REWRITE_TRANSCRIPTS=1 pytest tests/unit/session/test_transcripts.py, then read the
difference.
"""

import asyncio
import os
from dataclasses import fields
from pathlib import Path

import pytest

from san_target.session.discovery import TextExchange, TextRequest, TextResponse
from san_target.session.login import Login, LoginResponse, LoginResult
from san_target.session.parameters import Parameters, TargetLimits
from san_target.session.target import Access, Credentials
from tests.unit.session.login_support import (
    INITIATOR,
    PORTAL,
    FakeDirectory,
    add_session,
    make_login,
    make_request,
    make_target,
)

FOLDER = Path(__file__).parent / "transcripts"


def encode(lines: list[str]) -> bytes:
    return b"".join(line[:-1].encode() if line.endswith("\\") else line.encode() + b"\0" for line in lines)


def show_data(data: bytes) -> list[str]:
    lines = data.decode().split("\0")
    last = lines.pop()
    return [f"  {line}" for line in lines] + ([f"  {last}\\"] if last else [])


def show_login(response: LoginResponse) -> list[str]:
    words = ["< login", f"status={response.status_class << 8 | response.status_detail:04x}"]
    if response.status_class == 0:
        flags = [name for name, on in (("T", response.transit), ("C", response.continue_)) if on]
        words += [*flags, f"csg={response.current_stage}", f"nsg={response.next_stage:d}", f"tsih={response.tsih}"]
    return [" ".join(words), *show_data(response.data)]


def show_text(response: TextResponse | None) -> list[str]:
    if response is None:
        return ["< reject"]
    flags = [name for name, on in (("F", response.final), ("C", response.continue_)) if on]
    return [" ".join(["< text", *flags, f"ttt={response.ttt:x}"]), *show_data(response.data)]


def show_result(result: LoginResult) -> list[str]:
    default = Parameters()
    changed = [
        f"{field.name}={getattr(result.parameters, field.name)}"
        for field in fields(Parameters)
        if getattr(result.parameters, field.name) != getattr(default, field.name)
    ]
    who = [result.initiator_name, f"alias={result.initiator_alias!r}", f"user={result.authenticated_user}"]
    where = "discovery" if result.target is None else result.target.iqn
    return [f"= {' '.join(who)} at {where}", *(f"=   {line}" for line in changed)]


class Scenario:
    """A target with one initiator, driven by the lines of a transcript."""

    def __init__(self) -> None:
        self.directory = FakeDirectory()
        self.weak_chap = True
        self.tsih: int | None = 17
        self.limits = TargetLimits()
        self._login: Login | None = None
        self._text: TextExchange | None = None

    def set(self, name: str, value: str) -> None:
        target = self.directory.targets[0]
        users = (
            tuple(Credentials(item.split(":")[0], item.split(":")[1].encode()) for item in value.split(" "))
            if "chap" in name and name != "weak-chap"
            else ()
        )
        actions = {
            "alias": lambda: setattr(target, "alias", value),
            "allowed": lambda: setattr(target.access, "allowed", frozenset(value.split(" "))),
            "chap": lambda: setattr(target.access, "chap", users),
            "mutual-chap": lambda: setattr(target.access, "mutual_chap", users[0]),
            "discovery-chap": lambda: setattr(self.directory, "discovery", Access(chap=users)),
            "discovery-allowed": lambda: setattr(self.directory, "discovery", Access(frozenset(value.split(" ")))),
            "weak-chap": lambda: setattr(self, "weak_chap", value == "yes"),
            "redirect": lambda: setattr(self.directory, "redirect_to", value),
            "ready": lambda: setattr(target, "ready", value == "yes"),
            "session": lambda: add_session(target, int(value)),
            "room": lambda: setattr(self, "tsih", 17 if value == "yes" else None),
            "portals": lambda: self.directory.extra_portals.extend(value.split(" ")),
            "target": lambda: self.directory.targets.append(make_target(value.split(" ")[0])),
            "private-target": lambda: self.directory.targets.append(
                make_target(value, Access(allowed=frozenset({"iqn.2020-01.net.example:other"})))
            ),
        }
        actions[name]()

    def request(self, words: list[str], lines: list[str]) -> list[str]:
        values = dict(word.split("=") for word in words[2:] if "=" in word)
        data = encode(lines)
        if words[1] == "text":
            assert self._text is not None, "text before the end of login"
            request = TextRequest(
                "F" in words, "C" in words, int(values["itt"]), int(values["ttt"], 16), bytes(8), data
            )
            return show_text(self._text.respond(request))
        login = self._login = self._login or make_login(self.directory, self.weak_chap, self.tsih, limits=self.limits)
        response = asyncio.run(
            login.respond(
                make_request(
                    data,
                    transit="T" in words,
                    continue_="C" in words,
                    current_stage=int(values["csg"]),
                    next_stage=int(values.get("nsg", 0)),
                    tsih=int(values.get("tsih", 0)),
                    itt=int(values.get("itt", 1)),
                    cid=int(values.get("cid", 0)),
                    version_min=int(values.get("version", 0)),
                    isid=bytes.fromhex(values.get("isid", "00023d000001")),
                )
            )
        )
        if login.result is None:
            return show_login(response)
        result = login.result
        self._text = TextExchange(self.directory, result.parameters, INITIATOR, result.target, PORTAL)
        return show_login(response) + show_result(result)


def replay(transcript: str) -> str:
    """The transcript as it would read if every response in it were what the code says now."""
    output: list[str] = []
    scenario = Scenario()
    lines = transcript.splitlines()
    position = 0
    while position < len(lines):
        line = lines[position]
        position += 1
        if line.startswith(("<", "=")):
            while position < len(lines) and lines[position].startswith("  "):
                position += 1
            continue
        output.append(line)
        if line.startswith("--- "):
            scenario = Scenario()
        elif line.startswith("set "):
            _, name, value = line.split(" ", 2)
            scenario.set(name, value)
        elif line.startswith("> "):
            data = []
            while position < len(lines) and lines[position].startswith("  "):
                data.append(lines[position][2:])
                output.append(lines[position])
                position += 1
            output += scenario.request(line.split(), data)
        else:
            assert not line or line.startswith("#"), f"cannot read {line!r}"
    return "\n".join(output) + "\n"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.txt")), ids=lambda path: path.stem)
def test_transcript(path: Path) -> None:
    expected = path.read_text()
    actual = replay(expected)
    if os.environ.get("REWRITE_TRANSCRIPTS"):
        path.write_text(actual)
    else:
        assert actual == expected


def test_transcripts_hold_responses() -> None:
    files = list(FOLDER.glob("*.txt"))
    assert len(files) >= 10
    for path in files:
        content = path.read_text()
        assert content.count("\n> ") == content.count("\n< "), path.name
