"""Sizes, durations, addresses and secret files, as operators write them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from san_target.cli.values import (
    format_size,
    parse_address,
    parse_duration,
    parse_size,
    read_chap_user,
    read_secret,
)


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("4096", 4096),
        ("1K", 1 << 10),
        ("512M", 512 << 20),
        ("10G", 10 << 30),
        ("10g", 10 << 30),
        ("10GB", 10 << 30),
        ("10 GiB", 10 << 30),
        ("1T", 1 << 40),
        ("2P", 2 << 50),
        ("1.5G", 3 << 29),
        ("0.1K", None),
        ("0", None),
        ("-1", None),
        ("", None),
        ("G", None),
        ("10Q", None),
        ("1e9", None),
        ("1,5G", None),
        ("١G", None),
        ("1G1G", None),
    ],
)
def test_sizes(text: str, size_bytes: int | None) -> None:
    if size_bytes is None:
        with pytest.raises(ValueError, match=r"size|bytes"):
            parse_size(text)
    else:
        assert parse_size(text) == size_bytes


@given(st.integers(1, 1 << 62))
def test_bytes_are_taken_as_they_are(size_bytes: int) -> None:
    assert parse_size(str(size_bytes)) == size_bytes


@given(st.integers(1, 1023), st.sampled_from("KMGTP"))
def test_what_is_shown_can_be_typed(count: int, unit: str) -> None:
    size_bytes = parse_size(f"{count}{unit}")
    assert format_size(size_bytes) == f"{count} {unit}iB"
    assert parse_size(format_size(size_bytes)) == size_bytes


@pytest.mark.parametrize(
    ("size_bytes", "text"), [(0, "0 B"), (1, "1 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (1 << 60, "1 EiB")]
)
def test_sizes_for_people(size_bytes: int, text: str) -> None:
    assert format_size(size_bytes) == text


@pytest.mark.parametrize(("text", "seconds"), [("50us", 50e-6), ("10ms", 0.01), ("2s", 2.0), ("2", 2.0), ("0.5", 0.5)])
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "us", "5m", "-1s", "1 h"])
def test_bad_durations(text: str) -> None:
    with pytest.raises(ValueError, match="duration"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:3260", ("127.0.0.1", 3260)),
        ("san.example:0", ("san.example", 0)),
        ("[::1]:3260", ("::1", 3260)),
    ],
)
def test_addresses(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["", "host", "host:", ":3260", "::1:3260", "[::1]", "host:x", "host:65536", "[]:1"])
def test_bad_addresses(text: str) -> None:
    with pytest.raises(ValueError, match=r"address|port"):
        parse_address(text)


def secret_file(directory: Path, content: bytes, mode: int = 0o600) -> str:
    path = directory / "secret"
    path.write_bytes(content)
    path.chmod(mode)
    return str(path)


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_chap_user_from_a_file(tmp_path: Path, end: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    path = secret_file(tmp_path, b" twelve chars" + end)
    assert read_chap_user(f"iqn.1993-08.org.debian:01:host:{path}") == {
        "user": "iqn.1993-08.org.debian:01:host",
        "secret": " twelve chars",
    }
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o622])
def test_secret_that_others_can_read_is_warned_about(
    tmp_path: Path, mode: int, capsys: pytest.CaptureFixture[str]
) -> None:
    path = secret_file(tmp_path, b"a secret of the host\n", mode)
    assert read_secret(path) == "a secret of the host"
    shown = capsys.readouterr()
    assert "chmod 600" in shown.err
    assert shown.out == ""
    assert "a secret of the host" not in shown.err


@pytest.mark.parametrize("content", [b"", b"\n", b"two\nlines of text\n", b"\xff\xfe\xff", b"x" * 2000, b"a\x00b"])
def test_unusable_secret_files(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ValueError, match="secret"):
        read_secret(secret_file(tmp_path, content))


@pytest.mark.parametrize("text", ["", "host", "host:", ":file", "host:/nonexistent/file"])
def test_bad_chap_users(text: str) -> None:
    with pytest.raises(ValueError, match=r"USER:SECRET_FILE|cannot read"):
        read_chap_user(text)


def test_short_chap_secret(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="12 characters"):
        read_chap_user(f"host:{secret_file(tmp_path, b'eleven char')}")
